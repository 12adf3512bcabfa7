package hostnet

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The rules in this file are not spillway's: they make a namespace behave like
// a cloud's network, for labs and demonstrations.

// CounterFabricDrop is the counter of both kinds of fabric rules.
const CounterFabricDrop = "dropped"

// FabricFirewall makes the namespace forward only flows that start on the side
// of interface inside (a stateful firewall, as between a provider's hosts and
// a customer's network).
func (c *Conn) FabricFirewall(name, inside string) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	r := newRuleset(n, nftables.TableFamilyINet, name)
	r.counter(CounterFabricDrop)
	r.begin("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0, "", nftables.ChainPolicyAccept)
	mask := expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	r.rule(match{
		&expr.Ct{Key: expr.CtKeySTATE, Register: regCmp},
		&expr.Bitwise{SourceRegister: regCmp, DestRegister: regCmp, Len: 4, Mask: host32(mask), Xor: host32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regCmp, Data: host32(0)},
	}, accept())
	r.rule(inFrom(inside), accept())
	r.rule(dropCounted(CounterFabricDrop))
	return r.commit()
}

// fabricSet names the set of addresses bound to a bridge port.
func fabricSet(port string, f int) string {
	if f == unix.AF_INET {
		return port + "-4"
	}
	return port + "-6"
}

// FabricPorts binds bridge ports to addresses, as a cloud's hypervisor does:
// from such a port only frames with a bound source pass, in IP, ARP and
// neighbour advertisements; link-local IPv6 always does. Addresses are bound
// by FabricBind.
func (c *Conn) FabricPorts(name string, ports []string) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	r := newRuleset(n, nftables.TableFamilyBridge, name)
	r.counter(CounterFabricDrop)
	sets := map[string][2]*nftables.Set{}
	for _, p := range ports {
		s4, err := r.set(fabricSet(p, unix.AF_INET), 1024, false, nil, nftables.TypeIPAddr)
		if err != nil {
			return err
		}
		s6, err := r.set(fabricSet(p, unix.AF_INET6), 1024, false, nil, nftables.TypeIP6Addr)
		if err != nil {
			return err
		}
		sets[p] = [2]*nftables.Set{s4, s6}
	}
	for _, h := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"forward", nftables.ChainHookForward}, {"input", nftables.ChainHookInput}} {
		r.begin(h.name, nftables.ChainTypeFilter, h.hook, 0, "", nftables.ChainPolicyAccept)
		for _, p := range ports {
			notIn := func(s *nftables.Set) match {
				return match{&expr.Lookup{SourceRegister: regKey, SetName: s.Name, SetID: s.ID, Invert: true}}
			}
			drop := dropCounted(CounterFabricDrop)
			s4, s6 := sets[p][0], sets[p][1]
			r.rule(inFrom(p), etherType(unix.ETH_P_IP), match{loadNet(regKey, 12, 4)}, notIn(s4), drop)
			r.rule(inFrom(p), etherType(unix.ETH_P_ARP), match{loadNet(regKey, 14, 4)}, notIn(s4), drop)
			r.rule(inFrom(p), etherType(unix.ETH_P_IPV6), l4Is(unix.IPPROTO_ICMPV6), l4Byte(0, 136),
				match{loadL4(regKey, 8, 16)}, notIn(s6), drop)
			r.rule(inFrom(p), etherType(unix.ETH_P_IPV6), srcIn(linkLocal), accept())
			r.rule(inFrom(p), etherType(unix.ETH_P_IPV6), match{loadNet(regKey, 8, 16)}, notIn(s6), drop)
		}
	}
	return r.commit()
}

// FabricBind binds an address to a port of FabricPorts, or takes it away.
func (c *Conn) FabricBind(name, port string, a netip.Addr, bound bool) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: name}
	s := &nftables.Set{Table: t, Name: fabricSet(port, family(a)), KeyType: nftables.TypeIPAddr}
	if a.Is6() {
		s.KeyType = nftables.TypeIP6Addr
	}
	el := []nftables.SetElement{{Key: a.AsSlice()}}
	if bound {
		err = n.SetAddElements(s, el)
	} else {
		err = n.SetDeleteElements(s, el)
	}
	if err == nil {
		err = n.Flush()
	}
	if bound {
		err = exists(err)
	} else {
		err = gone(err)
	}
	if err != nil {
		return fmt.Errorf("bind %s to port %s: %w", a, port, err)
	}
	return nil
}

// FabricDrops is how many packets a FabricFirewall (bridge false) or
// FabricPorts (bridge true) refused.
func (c *Conn) FabricDrops(name string, bridge bool) (uint64, error) {
	f := nftables.TableFamilyINet
	if bridge {
		f = nftables.TableFamilyBridge
	}
	m, err := c.counters(f, name)
	return m[CounterFabricDrop].Packets, err
}
