package nat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// errorKind is an ICMP error of one family: type, code and second word.
type errorKind struct {
	name      string
	typ, code uint8
	word      uint32
	// lengthShift and unit place the RFC 4884 length in the word; unit 0 means
	// that the error has none.
	lengthShift, unit int
}

func errorKinds(f family) []errorKind {
	if f.name == "v4" {
		return []errorKind{
			{"host unreachable", 3, 1, 0, 16, 4},
			{"port unreachable", 3, 3, 0, 16, 4},
			{"fragmentation needed", 3, 4, 1400, 16, 4},
			{"time exceeded", 11, 0, 0, 16, 4},
			{"parameter problem", 12, 0, 8 << 24, 16, 4},
		}
	}
	return []errorKind{
		{"no route", 1, 0, 0, 24, 8},
		{"port unreachable", 1, 4, 0, 24, 8},
		{"packet too big", 2, 0, 1400, 0, 0},
		{"time exceeded", 3, 0, 0, 24, 8},
		{"parameter problem", 4, 1, 40, 0, 0},
	}
}

// quoted is a packet that an error can be about, built for any two ends.
type quoted struct {
	name    string
	build   func(src, dst netip.AddrPort, o pkt.Opts) []byte
	minimal int // bytes of transport header that are the least
}

func big(n int) []byte { return bytes.Repeat([]byte("payload "), n/8) }

func quotedKinds(asker bool) []quoted {
	echo := quoted{"echo", func(src, dst netip.AddrPort, o pkt.Opts) []byte {
		return o.Echo(src.Addr(), dst.Addr(), src.Port(), 77, pkt.Request, big(200))
	}, 8}
	if !asker {
		echo.build = func(src, dst netip.AddrPort, o pkt.Opts) []byte {
			return o.Echo(src.Addr(), dst.Addr(), dst.Port(), 77, pkt.Reply, big(200))
		}
	}
	return []quoted{
		{"tcp", func(src, dst netip.AddrPort, o pkt.Opts) []byte {
			return o.TCP(src, dst, packet.SYN, 1000, 0, big(200))
		}, 8},
		{"udp", func(src, dst netip.AddrPort, o pkt.Opts) []byte { return o.UDP(src, dst, big(200)) }, 8},
		{"udp without checksum", func(src, dst netip.AddrPort, o pkt.Opts) []byte {
			if src.Addr().Is4() {
				o.NoChecksum = true
			}
			return o.UDP(src, dst, big(200))
		}, 8},
		{"udp first fragment", func(src, dst netip.AddrPort, o pkt.Opts) []byte {
			o.MayFragment = true
			return pkt.Fragments(o.UDP(src, dst, big(400)), 256, 5)[0]
		}, 8},
		echo,
	}
}

// headers are the IP headers a quote may have in front of its transport.
func headers(f family, proto uint8) map[string]pkt.Opts {
	if f.name == "v4" {
		return map[string]pkt.Opts{
			"plain":   {TTL: 1},
			"options": {TTL: 1, IPOptions: []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0}}, // record route
		}
	}
	ext, first := pkt.Chain(proto, 0, 60, 135)
	return map[string]pkt.Opts{"plain": {TTL: 1}, "extensions": {TTL: 1, Extensions: ext, First: first}}
}

func protoOf(f family, name string) uint8 {
	switch name[:3] {
	case "tcp":
		return protoTCP
	case "udp":
		return protoUDP
	}
	return f.proto
}

// transportAt returns where the transport header of a packet is.
func transportAt(f family, o pkt.Opts, name string) int {
	if f.name == "v4" {
		return 20 + (len(o.IPOptions)+3)/4*4
	}
	n := 40 + len(o.Extensions)
	if name == "udp first fragment" {
		n += 8
	}
	return n
}

// message builds an error about the first n bytes of a packet, with an RFC 4884
// extension behind them if ext is set.
func (k errorKind) message(src, dst netip.Addr, about []byte, n int, ext bool) []byte {
	body := bytes.Clone(about[:n])
	word := k.word
	if ext {
		for len(body) < 128 || len(body)%8 != 0 {
			body = append(body, 0)
		}
		word |= uint32(len(body)/k.unit) << k.lengthShift
		body = append(body, 0x20, 0, 0xde, 0xad, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x01) // an MPLS label stack
	}
	return pkt.ICMP(src, dst, k.typ, k.code, word, body)
}

// ends are who talks to whom in these tests.
func ends(f family, port uint16, proto string) (inner, outer, remote netip.AddrPort) {
	inner, outer, remote = at(f.task, 40000), at(f.outer, port), at(f.server, 443)
	if proto == "echo" {
		remote = at(f.server, 0)
	}
	return inner, outer, remote
}

// TestI4_InboundErrorEqualsOneForTheTask gives RewriteErrorInbound every kind
// of error about every kind of packet, cut at every length that is legal, and
// compares with the same error built for the inner packet.
func TestI4_InboundErrorEqualsOneForTheTask(t *testing.T) {
	tried := 0
	for _, f := range families {
		for _, q := range quotedKinds(true) {
			w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
			inner, _, remote := ends(f, 0, q.name)
			ref, port := w.mustAdmit(whole(q)(inner, remote), 1)
			e := w.ft.Entry(ref)
			_, outer, _ := ends(f, port, q.name)
			for hname, o := range headers(f, protoOf(f, q.name)) {
				ours, theirs := q.build(inner, remote, o), q.build(outer, remote, o)
				l4 := transportAt(f, o, q.name)
				for _, k := range errorKinds(f) {
					for n := l4 + q.minimal; n <= len(ours); n += step() {
						if q.name == "tcp" && n == l4+17 {
							continue // half a checksum cannot be mended: it stays as it is
						}
						for _, ext := range []bool{false, true} {
							if ext && (k.unit == 0 || n < 128 && n != len(ours) || n%8 != 0) {
								continue
							}
							tried++
							p := parse(t, k.message(f.router, f.outer, theirs, n, ext))
							if got, r := EmbeddedTuple(p); r != packet.OK || got.Mirror() != e.Reply() {
								t.Fatalf("%s %s %s %s, %d bytes: tuple %+v, %v", f.name, k.name, hname, q.name, n, got, r)
							}
							if r := RewriteErrorInbound(p, e); r != packet.OK {
								t.Fatalf("%s %s %s %s, %d bytes: refused: %v", f.name, k.name, hname, q.name, n, r)
							}
							want := k.message(f.router, f.task, ours, n, ext)
							if !bytes.Equal(p.Data, want) {
								t.Fatalf("%s %s %s %s, %d bytes, extension %v:\ngot  %x\nwant %x",
									f.name, k.name, hname, q.name, n, ext, p.Data, want)
							}
							if p.Dst != packet.AddrFrom(f.task) {
								t.Fatalf("Parsed goes to %x, want the task", p.Dst)
							}
						}
					}
				}
			}
		}
	}
	if tried < scaled(5000) {
		t.Errorf("only %d errors tried", tried)
	}
}

// whole returns a first packet of the flow that q is about.
func whole(q quoted) func(src, dst netip.AddrPort) []byte {
	return func(src, dst netip.AddrPort) []byte {
		switch q.name[:3] {
		case "tcp":
			return pkt.TCP(src, dst, packet.SYN, 1000, 0, nil)
		case "udp":
			return pkt.UDP(src, dst, nil)
		}
		return pkt.Echo(src.Addr(), dst.Addr(), src.Port(), 1, pkt.Request, nil)
	}
}

// TestI5_OutboundErrorEqualsOneByTheOutside is the mirror: the task complains
// about an answer.
func TestI5_OutboundErrorEqualsOneByTheOutside(t *testing.T) {
	for _, f := range families {
		for _, q := range quotedKinds(false) {
			w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
			inner, _, remote := ends(f, 0, q.name)
			ref, port := w.mustAdmit(whole(q)(inner, remote), 1)
			e := w.ft.Entry(ref)
			_, outer, _ := ends(f, port, q.name)
			for hname, o := range headers(f, protoOf(f, q.name)) {
				ours, theirs := q.build(remote, inner, o), q.build(remote, outer, o)
				l4 := transportAt(f, o, q.name)
				for _, k := range errorKinds(f) {
					for n := l4 + q.minimal; n <= len(ours); n += step() {
						if q.name == "tcp" && n == l4+17 {
							continue // half a checksum cannot be mended: it stays as it is
						}
						p := parse(t, k.message(f.task, f.server, ours, n, false))
						if r := RewriteErrorOutbound(p, e); r != packet.OK {
							t.Fatalf("%s %s %s %s, %d bytes: refused: %v", f.name, k.name, hname, q.name, n, r)
						}
						if want := k.message(f.outer, f.server, theirs, n, false); !bytes.Equal(p.Data, want) {
							t.Fatalf("%s %s %s %s, %d bytes:\ngot  %x\nwant %x", f.name, k.name, hname, q.name, n, p.Data, want)
						}
					}
				}
			}
		}
	}
}

// errorWorld has one UDP flow per family and what is needed to complain about
// it.
func errorWorld(t *testing.T, f family) (e *flowtable.Entry, about []byte) {
	w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
	ref, port := w.mustAdmit(pkt.UDP(at(f.task, 40000), at(f.server, 443), nil), 1)
	return w.ft.Entry(ref), pkt.UDP(at(f.outer, port), at(f.server, 443), big(64))
}

// TestM4_FloorOfMTU: an MTU below the floor is an attack, one at the floor is
// delivered unchanged.
func TestM4_FloorOfMTU(t *testing.T) {
	for _, f := range families {
		e, about := errorWorld(t, f)
		k := errorKinds(f)[2]
		for _, c := range []struct {
			mtu   uint32
			floor MTUFloor
			v4    packet.Reason
			v6    packet.Reason
		}{
			{0, MTUFloor{}, packet.BadMTU, packet.BadMTU},
			{67, MTUFloor{V4: 1, V6: 1}, packet.BadMTU, packet.BadMTU},
			{68, MTUFloor{V4: 1, V6: 1}, packet.OK, packet.BadMTU},
			{551, MTUFloor{}, packet.BadMTU, packet.BadMTU},
			{552, MTUFloor{}, packet.OK, packet.BadMTU},
			{1279, MTUFloor{}, packet.OK, packet.BadMTU},
			{1280, MTUFloor{}, packet.OK, packet.OK},
			{1300, MTUFloor{V4: 1400, V6: 1400}, packet.BadMTU, packet.BadMTU},
			{65535, MTUFloor{}, packet.OK, packet.OK},
		} {
			want := c.v4
			if f.name == "v6" {
				want = c.v6
			}
			k.word = c.mtu
			msg := k.message(f.router, f.outer, about, len(about), false)
			p := parse(t, msg)
			if got := RewriteErrorInboundMTU(p, e, c.floor); got != want {
				t.Errorf("%s: MTU %d with floor %+v: %v, want %v", f.name, c.mtu, c.floor, got, want)
			}
			if want != packet.OK && !bytes.Equal(p.Data, msg) {
				t.Errorf("%s: MTU %d: refused, but changed", f.name, c.mtu)
			}
			if mtu, ok := EmbeddedMTU(p); !ok || mtu != c.mtu {
				t.Errorf("%s: MTU %d became %d, %v", f.name, c.mtu, mtu, ok)
			}
		}
	}
}

// TestI3_UnreadableQuotes lists what must not be translated.
func TestI3_UnreadableQuotes(t *testing.T) {
	type row struct {
		name string
		f    family
		make func(about []byte) []byte // the quote
		want packet.Reason
	}
	v4, v6 := families[0], families[1]
	udp6 := func(kinds ...uint8) []byte {
		ext, first := pkt.Chain(protoUDP, kinds...)
		return pkt.Opts{Extensions: ext, First: first}.UDP(at(out6, 1), at(server6, 2), big(64))
	}
	rows := []row{
		{"seven bytes of transport", v4, func(b []byte) []byte { return b[:27] }, packet.Truncated},
		{"half an IP header", v4, func(b []byte) []byte { return b[:10] }, packet.Truncated},
		{"nothing", v4, func(b []byte) []byte { return nil }, packet.Truncated},
		{"wrong header checksum", v4, func(b []byte) []byte { b[10]++; return b }, packet.BadChecksum},
		{"IPv6 in ICMP", v4, func([]byte) []byte { return udp6() }, packet.BadHeader},
		{"header length 16", v4, func(b []byte) []byte { b[0] = 0x44; return b }, packet.BadHeader},
		{"header longer than quote", v4, func(b []byte) []byte { b[0] = 0x4f; return b[:40] }, packet.Truncated},
		{"later fragment", v4, func(b []byte) []byte {
			return pkt.Edit(b, func(b []byte) { b[7] = 9 })
		}, packet.FragmentRefused},
		{"total length of the header alone", v4, func(b []byte) []byte {
			return pkt.Edit(b, func(b []byte) { b[2], b[3] = 0, 20 })
		}, packet.Truncated},
		{"GRE", v4, func([]byte) []byte { return pkt.Raw(out4, server4, 47, big(64)) }, packet.UnsupportedProtocol},
		{"ICMPv6 in IPv4", v4, func([]byte) []byte { return pkt.Raw(out4, server4, 58, big(64)) }, packet.UnsupportedProtocol},
		{"error about an error", v4, func(b []byte) []byte {
			return pkt.ICMP(out4, server4, 3, 1, 0, b)
		}, packet.UnsupportedProtocol},
		{"half an IPv6 header", v6, func(b []byte) []byte { return b[:39] }, packet.Truncated},
		{"IPv4 in ICMPv6", v6, func([]byte) []byte {
			return pkt.UDP(at(out4, 1), at(server4, 2), big(64))
		}, packet.BadHeader},
		{"ICMP in IPv6", v6, func([]byte) []byte { return pkt.Raw(out6, server6, 1, big(64)) }, packet.UnsupportedProtocol},
		{"nine extension headers", v6, func([]byte) []byte {
			return udp6(60, 60, 60, 60, 60, 60, 60, 60, 60)
		}, packet.BadExtension},
		{"extension header past the end", v6, func([]byte) []byte {
			b := udp6(60)
			b[41] = 20
			return b[:64]
		}, packet.Truncated},
		{"extension header too long", v6, func([]byte) []byte {
			b := udp6(60)
			b[41] = 40
			return b
		}, packet.BadExtension},
		{"half an extension header", v6, func([]byte) []byte { return udp6(60)[:44] }, packet.Truncated},
		{"segments left", v6, func([]byte) []byte {
			b := udp6(43)
			b[43] = 1
			return b
		}, packet.RoutingHeader},
		{"no next header", v6, func([]byte) []byte { return pkt.Raw(out6, server6, 59, nil) }, packet.UnsupportedProtocol},
		{"later IPv6 fragment", v6, func(b []byte) []byte {
			return pkt.Fragments(pkt.UDP(at(out6, 1), at(server6, 2), big(400)), 200, 1)[1]
		}, packet.FragmentRefused},
	}
	for _, r := range rows {
		_, about := errorWorld(t, r.f)
		msg := pkt.ICMP(r.f.router, r.f.outer, errorKinds(r.f)[0].typ, 1, 0, r.make(about))
		if _, got := EmbeddedTuple(parse(t, msg)); got != r.want {
			t.Errorf("%s %s: %v, want %v", r.f.name, r.name, got, r.want)
		}
	}
	p := parse(t, pkt.Echo(router4, out4, 1, 1, pkt.Reply, nil))
	if _, got := EmbeddedTuple(p); got != packet.UnsupportedProtocol {
		t.Errorf("an echo reply has an embedded tuple: %v", got)
	}
}

// TestZ14_ErrorsAboutOthersChangeNothing: an error must be about the flow it is
// translated for, and come from that flow's task.
func TestZ14_ErrorsAboutOthersChangeNothing(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
		ref, port := w.mustAdmit(pkt.UDP(at(f.task, 40000), at(f.server, 443), nil), 1)
		e := w.ft.Entry(ref)
		k := errorKinds(f)[1]
		reply := pkt.UDP(at(f.server, 443), at(f.task, 40000), big(64))
		sent := pkt.UDP(at(f.outer, port), at(f.server, 443), big(64))
		other := pkt.UDP(at(f.outer, port^1), at(f.server, 443), big(64))
		for _, c := range []struct {
			name string
			msg  []byte
			dir  flowtable.Direction
			want packet.Reason
		}{
			{"another task about this flow", pkt.ICMP(f.router, f.server, k.typ, k.code, 0, reply), flowtable.Outbound, packet.SpoofedSource},
			{"the task about an outside tuple", pkt.ICMP(f.task, f.server, k.typ, k.code, 0, sent), flowtable.Outbound, packet.NoFlow},
			{"a router about another port", pkt.ICMP(f.router, f.outer, k.typ, k.code, 0, other), flowtable.Inbound, packet.NoFlow},
			{"a router about the reply", pkt.ICMP(f.router, f.outer, k.typ, k.code, 0, reply), flowtable.Inbound, packet.NoFlow},
			{"to another address", pkt.ICMP(f.router, f.server, k.typ, k.code, 0, sent), flowtable.Inbound, packet.NoFlow},
		} {
			p := parse(t, c.msg)
			var got packet.Reason
			if c.dir == flowtable.Outbound {
				got = RewriteErrorOutbound(p, e)
			} else {
				got = RewriteErrorInbound(p, e)
			}
			if got != c.want {
				t.Errorf("%s: %s: %v, want %v", f.name, c.name, got, c.want)
			}
			if !bytes.Equal(p.Data, c.msg) {
				t.Errorf("%s: %s: refused, but changed", f.name, c.name)
			}
		}
	}
}

// TestI3d_LyingLengthAttribute: a length that reaches behind the packet is
// garbage in an unused field, not a reason to lose the error.
func TestI3d_LyingLengthAttribute(t *testing.T) {
	for _, f := range families {
		e, about := errorWorld(t, f)
		k := errorKinds(f)[0]
		msg := k.message(f.router, f.outer, about, len(about), false)
		p := parse(t, msg)
		binary.BigEndian.PutUint32(p.Data[p.L4+4:], 250<<k.lengthShift)
		if r := RewriteErrorInbound(p, e); r != packet.OK {
			t.Errorf("%s: error with a lying length attribute: %v", f.name, r)
		}
	}
}

// TestT15_QuotedSequence: an error about a segment that was never sent, or was
// acknowledged long ago, is forged.
func TestT15_QuotedSequence(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
		ref, port := w.mustAdmit(pkt.TCP(at(f.task, 40000), at(f.server, 443), packet.SYN, 1000, 0, nil), 1)
		e := w.ft.Entry(ref)
		una, nxt, ok := e.InFlight(flowtable.Outbound)
		if !ok || una != 1000 || nxt != 1001 {
			t.Fatalf("%s: in flight %d to %d, %v", f.name, una, nxt, ok)
		}
		for seq, want := range map[uint32]packet.Reason{
			998: packet.OutOfWindow, 999: packet.OK, 1000: packet.OK, 1001: packet.OK,
			1002: packet.OutOfWindow, 1 << 31: packet.OutOfWindow, 0: packet.OutOfWindow,
		} {
			about := pkt.TCP(at(f.outer, port), at(f.server, 443), packet.SYN, seq, 0, nil)
			p := parse(t, pkt.ICMP(f.router, f.outer, errorKinds(f)[0].typ, 0, 0, about))
			if got := RewriteErrorInbound(p, e); got != want {
				t.Errorf("%s: quoted sequence %d: %v, want %v", f.name, seq, got, want)
			}
		}
	}
}

// TestC2_CorruptErrorStaysCorrupt: translation must not mend an error.
func TestC2_CorruptErrorStaysCorrupt(t *testing.T) {
	for _, f := range families {
		e, about := errorWorld(t, f)
		msg := errorKinds(f)[1].message(f.router, f.outer, about, len(about), false)
		l4 := int(parse(t, msg).L4)
		translated := 0
		for i := l4 + 2; i < len(msg); i++ {
			bad := bytes.Clone(msg)
			bad[i] ^= 0x04
			p := parse(t, bad)
			if RewriteErrorInbound(p, e) != packet.OK {
				continue
			}
			translated++
			if pkt.Check(p.Data) == nil {
				t.Errorf("%s: byte %d was corrupt and the error left correct", f.name, i)
			}
		}
		if translated < 40 {
			t.Errorf("%s: only %d translated", f.name, translated)
		}
	}
}
