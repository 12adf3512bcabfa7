package packet_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestT4_ResetIsAcceptable: the sender's TCP must take it (RFC 9293 section
// 3.10.7.1).
func TestT4_ResetIsAcceptable(t *testing.T) {
	const f, s, r, a = packet.FIN, packet.SYN, packet.RST, packet.ACK
	for _, v := range []int{4, 6} {
		c, sv := ends(v)
		for _, tc := range []struct {
			name     string
			flags    uint8
			payload  int
			seq, ack uint32
			want     uint8
		}{
			{"to an ACK", a, 0, 0xffffffff, 0, r},
			{"to data", a | packet.PSH, 100, 0xffffffff, 0, r},
			{"to FIN", a | f, 3, 0xffffffff, 0, r},
			{"to SYN-ACK", a | s, 0, 0xffffffff, 0, r},
			{"to SYN", s, 0, 0, 0x1000 + 1, r | a},
			{"to SYN with data", s, 10, 0, 0x1000 + 11, r | a},
			{"to SYN that wraps", s, 0, 0, 0, r | a},
		} {
			seq := uint32(0x1000)
			if tc.name == "to SYN that wraps" {
				seq = 0xffffffff
			}
			p := mustParse(t, &packet.Packet{Data: pkt.TCP(c, sv, tc.flags, seq, 0xffffffff, data(tc.payload))})
			b := packet.NewBatch()
			pk := packet.AppendReset(b, p)
			if pk == nil || len(b.Packets) != 1 {
				t.Fatalf("IPv%d %s: no reset", v, tc.name)
			}
			want := pkt.Opts{ZeroWindow: true}.TCP(sv, c, tc.want, tc.seq, tc.ack, nil)
			if !bytes.Equal(pk.Data, want) {
				t.Errorf("IPv%d %s:\n%x, want\n%x", v, tc.name, pk.Data, want)
			}
		}
	}
}

// A whole super-packet counts as one segment of its length.
func TestResetOfSuperPacket(t *testing.T) {
	pk := pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 77, data(5000)), 1000)
	b := packet.NewBatch()
	got := packet.AppendReset(b, mustParse(t, &pk))
	if want := (pkt.Opts{ZeroWindow: true}).TCP(s4, c4, packet.RST, 77, 0, nil); !bytes.Equal(got.Data, want) {
		t.Errorf("\n%x, want\n%x", got.Data, want)
	}
}

func TestNoReset(t *testing.T) {
	b := packet.NewBatch()
	frag := pkt.Fragments(pkt.Opts{MayFragment: true}.TCP(c4, s4, packet.SYN, 7, 0, data(100)), 68, 0)
	for name, whole := range map[string][]byte{
		"to a RST":                     pkt.TCP(c4, s4, packet.RST, 1, 2, nil),
		"to a RST-ACK":                 pkt.TCP(c6, s6, packet.RST|packet.ACK, 1, 2, nil),
		"to UDP":                       pkt.UDP(c4, s4, nil),
		"to a SYN of unknown length":   frag[0],
		"to a later fragment":          frag[1],
		"to multicast":                 pkt.TCP(c4, netip.MustParseAddrPort("224.0.0.1:80"), packet.SYN, 1, 0, nil),
		"from loopback":                pkt.TCP(netip.MustParseAddrPort("127.0.0.1:80"), s4, packet.SYN, 1, 0, nil),
		"to itself":                    pkt.TCP(c4, c4, packet.SYN, 1, 0, nil),
		"to what is no packet":         {0x45, 0, 0},
		"from the unspecified address": pkt.TCP(netip.MustParseAddrPort("[::]:1"), s6, packet.SYN, 1, 0, nil),
	} {
		p, _ := parse(t, whole)
		if pk := packet.AppendReset(b, p); pk != nil || len(b.Packets) != 0 {
			t.Errorf("%s: sent %x", name, pk.Data)
			b.Reset()
		}
	}
	for !b.Full(1500) {
		pkt.Of(b, data(1500))
	}
	for !b.Full(40) {
		pkt.Of(b, data(40))
	}
	p := mustParse(t, &packet.Packet{Data: pkt.TCP(c4, s4, packet.SYN, 1, 0, nil)})
	if packet.AppendReset(b, p) != nil || packet.AppendICMPError(b, p, packet.HostUnreachable, p.Dst, 0) != nil {
		t.Error("written into a full batch")
	}
}

// TestI9_Errors: the messages, their words and quotes, as a receiver checks
// them.
func TestI9_Errors(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		router := packet.AddrFrom(netip.MustParseAddr("10.0.1.50"))
		if v == 6 {
			router = packet.AddrFrom(netip.MustParseAddr("fd00:1::50"))
		}
		for e, want := range map[packet.ICMPError][2][3]uint32{
			packet.AdminProhibited:     {{3, 13, 0}, {1, 1, 0}},
			packet.HostUnreachable:     {{3, 1, 0}, {1, 3, 0}},
			packet.PortUnreachable:     {{3, 3, 0}, {1, 4, 0}},
			packet.ProtocolUnreachable: {{3, 2, 0}, {4, 1, 6}},
			packet.FragNeeded:          {{3, 4, 1380}, {2, 0, 1380}},
			packet.TTLExceededError:    {{11, 0, 0}, {3, 0, 0}},
		} {
			for _, n := range []int{0, 100, 3000} {
				whole := pkt.UDP(c, s, data(n))
				p := mustParse(t, &packet.Packet{Data: whole})
				b := packet.NewBatch()
				pk := packet.AppendICMPError(b, p, e, router, 1380)
				if pk == nil {
					t.Fatalf("IPv%d error %d: none sent", v, e)
				}
				if err := pkt.Check(pk.Data); err != nil {
					t.Errorf("IPv%d error %d: %v", v, e, err)
				}
				l4, max, w := 20, 576, want[0]
				if v == 6 {
					l4, max, w = 40, 1280, want[1]
				}
				h := pk.Data[l4:]
				if uint32(h[0]) != w[0] || uint32(h[1]) != w[1] || binary.BigEndian.Uint32(h[4:]) != w[2] {
					t.Errorf("IPv%d error %d: %x, want type, code, word %v", v, e, h[:8], w)
				}
				quote := whole[:min(len(whole), max-l4-8)]
				if !bytes.Equal(h[8:], quote) {
					t.Errorf("IPv%d error %d: quotes %d bytes, want the first %d of the packet", v, e, len(h)-8, len(quote))
				}
				q, r := parse(t, pk.Data)
				if r != packet.OK || !q.IsICMPError() || q.Src != router || q.Dst != p.Src || q.VerifyChecksum() != packet.OK {
					t.Errorf("IPv%d error %d: does not pass our own front door: %v", v, e, r)
				}
			}
		}
	}
}

// TestU16_ProtocolUnreachable: a refused protocol is answered; the ICMPv6
// pointer shows the byte that names it, behind extension headers too.
func TestU16_ProtocolUnreachable(t *testing.T) {
	b := packet.NewBatch()
	ext, first := pkt.Chain(47, 0, 51, 60)
	for _, tc := range []struct {
		whole []byte
		want  uint32
	}{
		{pkt.Raw(c6.Addr(), s6.Addr(), 47, data(20)), 6},
		{pkt.Opts{Extensions: ext, First: first}.Raw(c6.Addr(), s6.Addr(), 47, data(20)), 40 + 8 + 16},
	} {
		p, r := parse(t, tc.whole)
		if r != packet.UnsupportedProtocol {
			t.Fatalf("Parse = %v", r)
		}
		pk := packet.AppendICMPError(b, p, packet.ProtocolUnreachable, p.Dst, 0)
		if got := binary.BigEndian.Uint32(pk.Data[44:]); got != tc.want || tc.whole[got] != 47 {
			t.Errorf("pointer %d, want %d", got, tc.want)
		}
	}
	p, _ := parse(t, pkt.Raw(c4.Addr(), s4.Addr(), 47, data(20)))
	if pk := packet.AppendICMPError(b, p, packet.ProtocolUnreachable, p.Dst, 0); pk == nil || pk.Data[20] != 3 || pk.Data[21] != 2 {
		t.Error("IPv4: no protocol unreachable")
	}
}

// TestI9_NeverAbout is RFC 1812 section 4.3.2.7 and RFC 4443 section 2.4 (e).
func TestI9_NeverAbout(t *testing.T) {
	quote := pkt.UDP(s4, c4, data(8))
	frag4 := pkt.Fragments(pkt.Opts{MayFragment: true}.UDP(c4, s4, data(100)), 68, 0)
	frag6 := pkt.Fragments(pkt.UDP(c6, s6, data(100)), 104, 1)
	to := func(src, dst string) []byte {
		return pkt.UDP(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), nil)
	}
	b := packet.NewBatch()
	for name, whole := range map[string][]byte{
		"unreachable":           pkt.ICMP(c4.Addr(), s4.Addr(), 3, 1, 0, quote),
		"source quench":         pkt.ICMP(c4.Addr(), s4.Addr(), 4, 0, 0, quote),
		"redirect":              pkt.ICMP(c4.Addr(), s4.Addr(), 5, 0, 0, quote),
		"time exceeded":         pkt.ICMP(c4.Addr(), s4.Addr(), 11, 0, 0, quote),
		"parameter problem":     pkt.ICMP(c4.Addr(), s4.Addr(), 12, 0, 0, quote),
		"ICMPv6 unreachable":    pkt.ICMP(c6.Addr(), s6.Addr(), 1, 0, 0, quote),
		"ICMPv6 too big":        pkt.ICMP(c6.Addr(), s6.Addr(), 2, 0, 1280, quote),
		"ICMPv6 unknown error":  pkt.ICMP(c6.Addr(), s6.Addr(), 100, 0, 0, quote),
		"ICMPv6 redirect":       pkt.ICMP(c6.Addr(), s6.Addr(), 137, 0, 0, quote),
		"ICMP cut short":        pkt.Raw(c4.Addr(), s4.Addr(), 1, []byte{8, 0}),
		"later fragment":        frag4[1],
		"later IPv6 fragment":   frag6[1],
		"broadcast":             to("10.0.0.1:1", "255.255.255.255:2"),
		"multicast":             to("10.0.0.1:1", "224.0.0.251:2"),
		"IPv6 multicast":        to("[fd00::1]:1", "[ff02::fb]:2"),
		"from broadcast":        to("255.255.255.255:1", "10.0.0.1:2"),
		"from the zero address": to("0.0.0.0:1", "10.0.0.1:2"),
		"from loopback":         to("127.0.0.1:1", "10.0.0.1:2"),
		"from IPv6 loopback":    to("[::1]:1", "[fd00::1]:2"),
		"from IPv6 unspecified": to("[::]:1", "[fd00::1]:2"),
		"from multicast":        to("224.0.0.1:1", "10.0.0.1:2"),
		"no packet":             {1, 2, 3},
		"header alone, cut":     pkt.UDP(c4, s4, nil)[:19],
		"nothing":               nil,
	} {
		p, _ := parse(t, whole)
		for _, src := range []packet.Addr{packet.AddrFrom(s4.Addr()), packet.AddrFrom(s6.Addr())} {
			if pk := packet.AppendICMPError(b, p, packet.HostUnreachable, src, 0); pk != nil {
				t.Errorf("about %s: sent %x", name, pk.Data)
			}
		}
	}
	// A refused metadata address is a single host: its sender is told.
	p, _ := parse(t, to("10.0.0.1:1", "169.254.169.254:80"))
	if packet.AppendICMPError(b, p, packet.AdminProhibited, packet.AddrFrom(s4.Addr()), 0) == nil {
		t.Error("about a link-local destination: nothing sent")
	}
	// A first fragment is answered; the wrong family and unknown errors are not.
	p = mustParse(t, &packet.Packet{Data: frag4[0]})
	if packet.AppendICMPError(b, p, packet.HostUnreachable, p.Dst, 0) == nil {
		t.Error("about a first fragment: nothing sent")
	}
	if packet.AppendICMPError(b, p, packet.HostUnreachable, packet.AddrFrom(s6.Addr()), 0) != nil {
		t.Error("an IPv6 source for an IPv4 packet")
	}
	if packet.AppendICMPError(b, p, 0, p.Dst, 0) != nil || packet.AppendICMPError(b, p, 200, p.Dst, 0) != nil {
		t.Error("an error that does not exist")
	}
}
