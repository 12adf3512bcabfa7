package hostnet

import (
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// insideTable is the nftables table (inet) in a task's namespace.
const insideTable = "spillway"

// Names of the inside guard's counters.
const (
	CounterInsideClear4 = "clear4" // IPv4 packets that would have left in clear
	CounterInsideClear6 = "clear6" // the same for IPv6
	CounterInsideWeak   = "weak"   // packets for the inner address that did not come by the tunnel, or the reverse
)

// udpReplyWindow is how long after a datagram came in by the primary an answer
// to it may leave by the primary: the two-way UDP timeout of RFC 4787 REQ-5.
const udpReplyWindow = 300 * time.Second

// learnedMax bounds each learned set, whose entries take about 150 bytes of
// kernel memory; learnedFirst is what it starts with.
const (
	learnedMax   = 65536
	learnedFirst = 4096
)

// applyInside builds the guard inside the task's namespace:
//
//	learn   what came in by UDP and not by the tunnel is remembered as
//	        (remote, remote port, local port) -> local address
//	answer  a datagram that fits such an entry gets that source address, so
//	        that the kernel routes it again, now by "from primary". It runs
//	        before conntrack (-200), which then sees one flow. What goes by
//	        the tunnel is not tracked at all.
//	weak    the strong host model: the inner address is reached by the tunnel
//	        only, and nothing else is reached by it
//	clear   after routing: by any interface that is not the tunnel or loopback
//	        only answers, declared destinations, marked packets, and neighbour
//	        discovery leave
func applyInside(c *Conn, cfg *AttachConfig, onLink []netip.Prefix) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	r := newRuleset(n, nftables.TableFamilyINet, insideTable)
	for _, name := range []string{CounterInsideClear4, CounterInsideClear6, CounterInsideWeak} {
		r.counter(name)
	}
	tun := cfg.Interface

	seen := map[int]*nftables.Set{}
	for _, f := range families {
		t, name := nftables.TypeIPAddr, "udp4"
		if f == unix.AF_INET6 {
			t, name = nftables.TypeIP6Addr, "udp6"
		}
		s, err := r.set(name, learnedMax, true, &t, t, nftables.TypeInetService, nftables.TypeInetService)
		if err != nil {
			return err
		}
		seen[f] = s
	}

	r.begin("weak", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300, "", nftables.ChainPolicyAccept)
	for _, a := range cfg.inner() {
		p := netip.PrefixFrom(a, a.BitLen())
		r.rule(nfFamily(family(a)), dstIn(p), inNotFrom(tun), inNotFrom("lo"), dropCounted(CounterInsideWeak))
		// Multicast and broadcast never come through the tunnel: what it
		// carries is addressed to the task.
		_, dst, size := addrAt(family(a))
		r.rule(nfFamily(family(a)), inFrom(tun), match{loadNet(regCmp, dst, size),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: regCmp, Data: a.AsSlice()}}, dropCounted(CounterInsideWeak))
	}
	r.rule(inFrom(tun), match{&expr.Notrack{}})

	r.begin("learn", nftables.ChainTypeFilter, nftables.ChainHookInput, -150, "", nftables.ChainPolicyAccept)
	for _, f := range families {
		src, dst, size := addrAt(f)
		words := size / 4
		r.rule(inNotFrom("lo"), inNotFrom(tun), nfFamily(f), l4Is(unix.IPPROTO_UDP), match{
			loadNet(regKey, src, size), loadL4(regKey+words, 0, 2), loadL4(regKey+words+1, 2, 2),
			loadNet(regKey+words+2, dst, size),
			&expr.Dynset{
				SrcRegKey: regKey, SrcRegData: regKey + words + 2, SetName: seen[f].Name, SetID: seen[f].ID,
				Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: udpReplyWindow,
			},
		})
	}

	r.begin("answer", nftables.ChainTypeRoute, nftables.ChainHookOutput, -300, "", nftables.ChainPolicyAccept)
	for _, f := range families {
		src, dst, size := addrAt(f)
		words := size / 4
		set := &expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: regKey + words + 2, Base: expr.PayloadBaseNetworkHeader,
			Offset: src, Len: size, CsumType: expr.CsumTypeInet, CsumOffset: 10,
			CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
		}
		if f == unix.AF_INET6 {
			// IPv6 has no header checksum, but google/nftables v0.3.0 sends
			// CsumFlags only with a CsumType. So name a place inside the
			// source address: the kernel writes the address after it
			// (nft_payload_set_eval).
			set.CsumOffset = src
		}
		r.rule(outNotTo("lo"), nfFamily(f), l4Is(unix.IPPROTO_UDP), match{
			loadNet(regKey, dst, size), loadL4(regKey+words, 2, 2), loadL4(regKey+words+1, 0, 2),
			&expr.Lookup{
				SourceRegister: regKey, DestRegister: regKey + words + 2, IsDestRegSet: true,
				SetName: seen[f].Name, SetID: seen[f].ID,
			},
			set,
		}, accept())
	}
	r.rule(outTo(tun), match{&expr.Notrack{}})

	r.begin("clear", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 300, "", nftables.ChainPolicyAccept)
	r.rule(outTo("lo"), accept())
	r.rule(outTo(tun), accept())
	if cfg.Mark != 0 {
		r.rule(markIs(cfg.Mark), accept())
	}
	r.rule(match{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: regCmp}, cmpEq([]byte{1})}, accept()) // IP_CT_DIR_REPLY
	for _, d := range cfg.declared() {
		for _, m := range declaredMatches(d) {
			r.rule(nfFamily(family(d.Prefix.Addr())), m, accept())
		}
	}
	for _, m := range neighbourMatches(onLink) {
		r.rule(nfFamily(unix.AF_INET6), m, accept())
	}
	r.rule(nfFamily(unix.AF_INET), dropCounted(CounterInsideClear4))
	r.rule(nfFamily(unix.AF_INET6), dropCounted(CounterInsideClear6))
	return r.commit()
}

// declaredMatches matches a declared destination: one match, or one per
// transport when it names a port.
func declaredMatches(d Destination) []match {
	if d.Port == 0 {
		return []match{dstIn(d.Prefix)}
	}
	var out []match
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		m := append(match{}, dstIn(d.Prefix)...)
		m = append(m, l4Is(proto)...)
		out = append(out, append(m, portIs(2, d.Port)...))
	}
	return out
}

// Where the ICMPv6 that a link needs may go.
var (
	linkLocal     = netip.MustParsePrefix("fe80::/10")
	linkMulticast = netip.MustParsePrefix("ff02::/16")
)

// l4Between matches a protocol whose first header byte (the type, for ICMP) is
// from lo to hi.
func l4Between(proto, lo, hi byte) match {
	return append(l4Is(proto), loadL4(regCmp, 0, 1),
		&expr.Range{Op: expr.CmpOpEq, Register: regCmp, FromData: []byte{lo}, ToData: []byte{hi}})
}

// neighbourMatches matches the IPv6 neighbour discovery (types 133-136,
// RFC 4861) and listener reports (130-132, RFC 2710; 143, RFC 3810) that may
// leave: with hop limit 255 (RFC 4861 sections 6.1, 7.1), and only to the link
// itself, so that they cannot carry data anywhere else.
func neighbourMatches(onLink []netip.Prefix) []match {
	to := []netip.Prefix{linkLocal, linkMulticast}
	for _, p := range onLink {
		if p = p.Masked(); p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() && !slices.Contains(to, p) {
			to = append(to, p)
		}
	}
	var out []match
	for _, p := range to {
		m := append(l4Between(unix.IPPROTO_ICMPV6, 133, 136), loadNet(regCmp, 7, 1), cmpEq([]byte{255}))
		out = append(out, append(m, dstIn(p)...))
	}
	for _, r := range [][2]byte{{130, 132}, {143, 143}} {
		out = append(out, append(l4Between(unix.IPPROTO_ICMPV6, r[0], r[1]), dstIn(linkMulticast)...))
	}
	return out
}
