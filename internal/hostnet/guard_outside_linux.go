package hostnet

import (
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// outsidePrefix begins the name of every nftables table of ours outside the
// tasks; the interface's name follows.
const outsidePrefix = "spillway-"

// Names of the outside guard's counters.
const (
	CounterOutsideClear4 = "clear4" // IPv4 packets of the task that were no answer and not declared
	CounterOutsideClear6 = "clear6" // the same for IPv6
	CounterOutsideOther  = "other"  // frames that are neither IP nor ARP
)

// How long what came in stays answerable without another packet coming in.
const (
	tcpOpening = 60 * time.Second   // after a SYN, FIN or RST
	tcpOpen    = 7440 * time.Second // RFC 5382 REQ-5: 2 h 4 min
	peerWindow = 300 * time.Second  // ICMP and later fragments
)

// applyOutside builds the guard on the host's end of a task's primary (a
// netdev table: it sees every frame on that interface and nothing else, needs
// no conntrack, and nothing in the task can reach it). Towards the task
// everything passes and is remembered; from the task only answers to what was
// remembered, declared destinations, and what the link itself needs pass.
func applyOutside(c *Conn, peer string, cfg *AttachConfig, onLink []netip.Prefix) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	r := newRuleset(n, nftables.TableFamilyNetdev, outsidePrefix+peer)
	for _, name := range []string{CounterOutsideClear4, CounterOutsideClear6, CounterOutsideOther} {
		r.counter(name)
	}
	var fams []outsideFamily
	for _, f := range families {
		o, err := newOutsideFamily(r, f)
		if err != nil {
			return err
		}
		fams = append(fams, o)
	}

	r.begin("to-task", nftables.ChainTypeFilter, nftables.ChainHookEgress, 0, peer, nftables.ChainPolicyAccept)
	for _, o := range fams {
		o.remember(r)
	}

	r.begin("from-task", nftables.ChainTypeFilter, nftables.ChainHookIngress, 0, peer, nftables.ChainPolicyDrop)
	r.rule(etherType(unix.ETH_P_ARP), accept())
	for _, m := range neighbourMatches(onLink) {
		r.rule(etherType(unix.ETH_P_IPV6), m, accept())
	}
	for _, d := range cfg.declared() {
		for _, m := range declaredMatches(d) {
			r.rule(etherOf(family(d.Prefix.Addr())), m, accept())
		}
	}
	for _, o := range fams {
		o.answer(r)
	}
	r.rule(etherType(unix.ETH_P_IP), dropCounted(CounterOutsideClear4))
	r.rule(etherType(unix.ETH_P_IPV6), dropCounted(CounterOutsideClear6))
	r.rule(dropCounted(CounterOutsideOther))
	return r.commit()
}

func etherOf(f int) match {
	if f == unix.AF_INET {
		return etherType(unix.ETH_P_IP)
	}
	return etherType(unix.ETH_P_IPV6)
}

// outsideFamily is the outside guard's knowledge in one address family.
type outsideFamily struct {
	f     int
	flows *nftables.Set // (protocol, remote, remote port, local, local port)
	peers *nftables.Set // (remote, local)
}

func newOutsideFamily(r *ruleset, f int) (outsideFamily, error) {
	o := outsideFamily{f: f}
	t, suffix := nftables.TypeIPAddr, "4"
	if f == unix.AF_INET6 {
		t, suffix = nftables.TypeIP6Addr, "6"
	}
	var err error
	o.flows, err = r.set("flows"+suffix, learnedMax, true, nil,
		nftables.TypeInetProto, t, nftables.TypeInetService, t, nftables.TypeInetService)
	if err != nil {
		return o, err
	}
	o.peers, err = r.set("peers"+suffix, learnedMax, true, nil, t, t)
	return o, err
}

// flowKey loads the flow key with the remote side first. in says that the
// packet goes to the task: then its source is the remote.
func (o outsideFamily) flowKey(in bool) match {
	src, dst, size := addrAt(o.f)
	words := size / 4
	remote, rport, local, lport := src, uint32(0), dst, uint32(2)
	if !in {
		remote, rport, local, lport = dst, 2, src, 0
	}
	return match{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regKey},
		loadNet(regKey+1, remote, size), loadL4(regKey+1+words, rport, 2),
		loadNet(regKey+2+words, local, size), loadL4(regKey+2+2*words, lport, 2),
	}
}

func (o outsideFamily) peerKey(in bool) match {
	src, dst, size := addrAt(o.f)
	remote, local := src, dst
	if !in {
		remote, local = dst, src
	}
	return match{loadNet(regKey, remote, size), loadNet(regKey+size/4, local, size)}
}

// remember adds the rules towards the task.
func (o outsideFamily) remember(r *ruleset) {
	ip, tcp := etherOf(o.f), l4Is(unix.IPPROTO_TCP)
	r.rule(ip, o.peerKey(true), learn(o.peers, peerWindow))
	// A segment that opens or ends keeps the flow for a minute; one in
	// between keeps a known flow open, and gives an unknown one (older than
	// this guard) a minute too.
	r.rule(ip, tcp, tcpFlags(0x07, 0, false), o.flowKey(true), inSet(o.flows), learn(o.flows, tcpOpen), accept())
	r.rule(ip, tcp, o.flowKey(true), learn(o.flows, tcpOpening), accept())
	r.rule(ip, l4Is(unix.IPPROTO_UDP), o.flowKey(true), learn(o.flows, udpReplyWindow))
}

// answer adds the rules from the task.
func (o outsideFamily) answer(r *ruleset) {
	ip := etherOf(o.f)
	clear := CounterOutsideClear4
	if o.f == unix.AF_INET6 {
		clear = CounterOutsideClear6
	}
	// A SYN alone is never an answer.
	r.rule(ip, l4Is(unix.IPPROTO_TCP), tcpFlags(0x12, 0x02, false), dropCounted(clear))
	// Only TCP and UDP are ever in the set.
	r.rule(ip, o.flowKey(false), inSet(o.flows), accept())
	icmp, types := byte(unix.IPPROTO_ICMP), [][2]byte{{0, 0}, {3, 3}, {11, 12}} // RFC 792: echo reply and errors
	if o.f == unix.AF_INET6 {
		icmp, types = unix.IPPROTO_ICMPV6, [][2]byte{{129, 129}, {1, 4}} // RFC 4443
	}
	for _, t := range types {
		r.rule(ip, l4Between(icmp, t[0], t[1]), o.peerKey(false), inSet(o.peers), accept())
	}
	// Later fragments carry no ports: they pass towards whoever was heard.
	// Without their first fragment, which was judged above, they are nothing.
	if o.f == unix.AF_INET {
		r.rule(ip, match{
			loadNet(regCmp, 6, 2),
			&expr.Bitwise{SourceRegister: regCmp, DestRegister: regCmp, Len: 2, Mask: []byte{0x1f, 0xff}, Xor: []byte{0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: regCmp, Data: []byte{0, 0}},
		}, o.peerKey(false), inSet(o.peers), accept())
		return
	}
	r.rule(ip, match{
		&expr.Exthdr{DestRegister: regCmp, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6},
		&expr.Bitwise{SourceRegister: regCmp, DestRegister: regCmp, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regCmp, Data: []byte{0, 0}},
	}, o.peerKey(false), inSet(o.peers), accept())
}
