package hostnet

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of the subnet guard's counters.
const (
	CounterSubnetSpoofed = "spoofed" // out of the TUN with a source that is no endpoint address
	CounterSubnetForeign = "foreign" // into the TUN from elsewhere, or for another address
	CounterSubnetLocal   = "local"   // out of the TUN towards the machine itself
	CounterSubnetRouter  = "router"  // from the subnet's interface to another: the machine is no router
)

// guardSets are the names of the sets of endpoint addresses.
func guardSet(a netip.Addr) string {
	if a.Is4() {
		return "own4"
	}
	return "own6"
}

func (s *Subnet) guardTable() string { return outsidePrefix + s.TUN() }

// applySubnetGuard builds the stateless guard around a subnet's TUN: endpoint
// addresses are not tracked; out of the TUN only packets with an endpoint's
// source pass, with IsolateNone to the subnet's interface only; into it only
// packets for an endpoint address from the subnet's side; nothing out of the
// TUN is for the machine itself.
func applySubnetGuard(s *Subnet) error {
	n, err := s.conn.filter()
	if err != nil {
		return err
	}
	tun, link, alone := s.TUN(), s.cfg.Link, s.cfg.Isolate == IsolateNone
	r := newRuleset(n, nftables.TableFamilyINet, s.guardTable())
	for _, c := range []string{CounterSubnetSpoofed, CounterSubnetForeign, CounterSubnetLocal, CounterSubnetRouter} {
		r.counter(c)
	}
	sets := map[int]*nftables.Set{}
	for _, f := range families {
		t, name := nftables.TypeIPAddr, "own4"
		if f == unix.AF_INET6 {
			t, name = nftables.TypeIP6Addr, "own6"
		}
		if sets[f], err = r.set(name, 4096, false, nil, t); err != nil {
			return err
		}
	}
	own := func(f int, at uint32) match {
		_, _, size := addrAt(f)
		return append(match{loadNet(regKey, at, size)}, inSet(sets[f])...)
	}
	src := func(f int) match { at, _, _ := addrAt(f); return own(f, at) }
	dst := func(f int) match { _, at, _ := addrAt(f); return own(f, at) }

	r.begin("notrack", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, "", nftables.ChainPolicyAccept)
	r.rule(inFrom(tun), match{&expr.Notrack{}})
	for _, f := range families {
		r.rule(inNotFrom(tun), nfFamily(f), dst(f), match{&expr.Notrack{}})
	}

	r.begin("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, -10, "", nftables.ChainPolicyAccept)
	for _, f := range families {
		out := match{}
		if alone {
			out = outTo(link)
		}
		r.rule(inFrom(tun), outNotTo(tun), out, nfFamily(f), src(f), accept())
		in := match{}
		if alone {
			in = inFrom(link)
		}
		r.rule(outTo(tun), inNotFrom(tun), in, nfFamily(f), dst(f), accept())
	}
	r.rule(inFrom(tun), dropCounted(CounterSubnetSpoofed))
	r.rule(outTo(tun), dropCounted(CounterSubnetForeign))
	if alone && !s.wasRouter {
		r.rule(inFrom(link), dropCounted(CounterSubnetRouter))
	}

	r.begin("input", nftables.ChainTypeFilter, nftables.ChainHookInput, -10, "", nftables.ChainPolicyAccept)
	r.rule(inFrom(tun), dropCounted(CounterSubnetLocal))

	r.begin("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, -10, "", nftables.ChainPolicyAccept)
	// The kernel reports its multicast groups on every interface: not counted.
	r.rule(outTo(tun), nfFamily(unix.AF_INET6), dstIn(linkMulticast), verdict(expr.VerdictDrop))
	r.rule(outTo(tun), dropCounted(CounterSubnetForeign))
	return r.commit()
}

// guardAddress puts an endpoint address into the guard's set or takes it out.
func (s *Subnet) guardAddress(a netip.Addr, in bool) error {
	n, err := s.conn.filter()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: s.guardTable()}
	set := &nftables.Set{Table: t, Name: guardSet(a), KeyType: nftables.TypeIPAddr}
	if a.Is6() {
		set.KeyType = nftables.TypeIP6Addr
	}
	el := []nftables.SetElement{{Key: a.AsSlice()}}
	if in {
		err = n.SetAddElements(set, el)
	} else {
		err = n.SetDeleteElements(set, el)
	}
	if err == nil {
		err = n.Flush()
	}
	if in {
		err = exists(err)
	} else {
		err = gone(err)
	}
	if err != nil {
		return fmt.Errorf("subnet %s: guard for %s: %w", s.cfg.ID, a, err)
	}
	return nil
}

// Counters reads what the guard dropped, by CounterSubnet….
func (s *Subnet) Counters() (map[string]Counter, error) {
	return s.conn.counters(nftables.TableFamilyINet, s.guardTable())
}

func (s *Subnet) dropGuard() error { return s.conn.delTable(nftables.TableFamilyINet, s.guardTable()) }
