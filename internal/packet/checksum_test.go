package packet_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"pgregory.net/rapid"
)

// fullSum is the checksum field over the given words by the slow and obvious
// method.
func fullSum(words ...uint16) uint16 {
	var s uint32
	for _, w := range words {
		s += uint32(w)
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

var corners = []uint16{0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xff00, 0x00ff, 0x5555, 0xaaaa, 0x3285, 0xfffd, 0xfffe, 0xffff}

// TestC1_IncrementalEqualsFull: for every value of the rest of the packet and
// every pair of corner values of the changed word, the updated checksum is the
// one of full recomputation. The rest is never all zero: a pseudo-header or an
// IP header is not.
func TestC1_IncrementalEqualsFull(t *testing.T) {
	for rest := 1; rest <= 0xffff; rest++ {
		for _, m := range corners {
			hc := fullSum(uint16(rest), m)
			for _, n := range corners {
				want := fullSum(uint16(rest), n)
				got := packet.Update16(hc, m, n)
				if got != want {
					t.Fatalf("rest %#04x, %#04x to %#04x: %#04x, want %#04x", rest, m, n, got, want)
				}
				if got == 0xffff {
					t.Fatalf("rest %#04x, %#04x to %#04x: 0xffff", rest, m, n)
				}
				udp := packet.Delta16(m, n).UDP(hc)
				switch {
				case hc == 0:
					want = 0 // "none" stays none
				case want == 0:
					want = 0xffff
				}
				if udp != want {
					t.Fatalf("UDP rest %#04x, %#04x to %#04x: %#04x, want %#04x", rest, m, n, udp, want)
				}
			}
		}
	}
}

// TestC1_EveryWordAgainstCorners turns the roles round: every value of the
// changed word, corner values of the rest.
func TestC1_EveryWordAgainstCorners(t *testing.T) {
	for m := 0; m <= 0xffff; m++ {
		for _, rest := range corners[1:] {
			hc := fullSum(rest, uint16(m))
			for _, n := range corners {
				if got, want := packet.Update16(hc, uint16(m), n), fullSum(rest, n); got != want {
					t.Fatalf("rest %#04x, %#04x to %#04x: %#04x, want %#04x", rest, m, n, got, want)
				}
			}
		}
	}
}

// TestC1_KnownVector is the example of RFC 1624 section 4, for which RFC 1141's
// form gives 0xffff.
func TestC1_KnownVector(t *testing.T) {
	if got := packet.Update16(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("Update16 = %#04x, want 0000", got)
	}
	// And back again.
	if got := packet.Update16(0, 0x3285, 0x5555); got != 0xdd2f {
		t.Errorf("Update16 = %#04x, want dd2f", got)
	}
}

// TestC1_MinusZero: a sender may write the other zero of one's complement. It
// counts as 0 and does not go on as 0xffff.
func TestC1_MinusZero(t *testing.T) {
	for _, m := range corners {
		rest := ^m // with it the sum is -0
		if rest == 0 {
			rest = 0xffff // a packet that is all zeros but m does not exist
		}
		for _, n := range corners {
			if got, want := packet.Update16(0xffff, m, n), fullSum(rest, n); got != want {
				t.Errorf("%#04x to %#04x: %#04x, want %#04x", m, n, got, want)
			}
		}
	}
}

// TestC6_PartialUpdates: a sum that is not complemented, finished later by
// whoever adds the payload.
func TestC6_PartialUpdates(t *testing.T) {
	for rest := 1; rest <= 0xffff; rest += 3 {
		for _, m := range corners {
			sum := ^fullSum(uint16(rest), m)
			for _, n := range corners {
				got := packet.UpdatePartial16(sum, m, n)
				// What the driver makes of it, with a payload of one word.
				if g, w := fullSum(got, 0x1234), fullSum(uint16(rest), n, 0x1234); g != w {
					t.Fatalf("rest %#04x, %#04x to %#04x: finished %#04x, want %#04x", rest, m, n, g, w)
				}
			}
		}
	}
}

func drawAddr(t *rapid.T, name string, v6 bool) netip.Addr {
	if !v6 {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
	b[0] = 0x20 | b[0]&0xf // keep away from the mapped range
	return netip.AddrFrom16(b)
}

// TestDelta: whatever changes in addresses and ports, complete and partial
// checksums are those of the packet built anew.
func TestDelta(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		a, b := drawAddr(t, "a", v6), drawAddr(t, "b", v6)
		dst := drawAddr(t, "dst", v6)
		p, q := rapid.Uint16().Draw(t, "p"), rapid.Uint16().Draw(t, "q")
		body := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "body")
		old, new := packet.AddrFrom(a), packet.AddrFrom(b)
		addr, port := packet.AddrDelta(&old, &new), packet.Delta16(p, q)

		from := pkt.UDP(netip.AddrPortFrom(a, p), netip.AddrPortFrom(dst, 53), body)
		to := pkt.UDP(netip.AddrPortFrom(b, q), netip.AddrPortFrom(dst, 53), body)
		at := 26
		if v6 {
			at = 46
		}
		if got, want := addr.Plus(port).UDP(binary.BigEndian.Uint16(from[at:])), binary.BigEndian.Uint16(to[at:]); got != want {
			t.Fatalf("complete: %#04x, want %#04x", got, want)
		}
		fp, tp := pkt.Partial(from), pkt.Partial(to)
		got := addr.Partial(binary.BigEndian.Uint16(fp.Data[at:]))
		if want := binary.BigEndian.Uint16(tp.Data[at:]); fullSum(got, 1) != fullSum(want, 1) {
			t.Fatalf("partial: %#04x, want %#04x", got, want)
		}
	})
}

// TestChecksumAgainstSlow compares with the obvious sum, at every alignment.
func TestChecksumAgainstSlow(t *testing.T) {
	b := data(600)
	for from := range 16 {
		for n := range 300 {
			if got, want := packet.Checksum(b[from:from+n], 0), uint16(pkt.Sum(b[from:from+n])); got != want {
				t.Fatalf("[%d:%d]: %#04x, want %#04x", from, from+n, got, want)
			}
		}
	}
}

func TestVerifyChecksum(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		l4 := 20
		if v == 6 {
			l4 = 40
		}
		for name, whole := range map[string][]byte{
			"tcp":   pkt.TCP(c, s, packet.ACK, 1, 2, data(101)),
			"udp":   pkt.UDP(c, s, data(101)),
			"echo":  pkt.Echo(c.Addr(), s.Addr(), 1, 2, pkt.Request, data(101)),
			"empty": pkt.UDP(c, s, nil),
		} {
			p := mustParse(t, &packet.Packet{Data: whole})
			if r := p.VerifyChecksum(); r != packet.OK || !p.GSO.Verified {
				t.Errorf("IPv%d %s: %v, verified %v", v, name, r, p.GSO.Verified)
			}
			// C2: every byte counts; nothing corrupt goes on.
			for i := l4; i < len(whole); i++ {
				bad := append([]byte(nil), whole...)
				bad[i] ^= 0x10
				p, r := parse(t, bad)
				if r != packet.OK {
					continue // a length or flag that is refused earlier
				}
				if got := p.VerifyChecksum(); got != packet.BadChecksum {
					t.Errorf("IPv%d %s byte %d: %v", v, name, i, got)
				}
			}
			// A kernel that vouches for it is believed.
			bad := append([]byte(nil), whole...)
			bad[len(bad)-1]++
			p = mustParse(t, &packet.Packet{Data: bad, GSO: packet.GSO{Verified: true}})
			if r := p.VerifyChecksum(); r != packet.OK {
				t.Errorf("IPv%d %s verified elsewhere: %v", v, name, r)
			}
		}
	}
}

// UDP options lie behind the datagram and are not covered by its checksum.
func TestVerifyChecksumStopsAtTheDatagram(t *testing.T) {
	udp := pkt.UDP(c4, s4, []byte("datagram"))[20:]
	whole := pkt.Raw(c4.Addr(), s4.Addr(), packet.ProtoUDP, append(append([]byte(nil), udp...), 1, 2, 3))
	if r := mustParse(t, &packet.Packet{Data: whole}).VerifyChecksum(); r != packet.OK {
		t.Errorf("VerifyChecksum = %v, want ok", r)
	}
}

func TestC3_UDPZero(t *testing.T) {
	o := pkt.Opts{NoChecksum: true}
	p := mustParse(t, &packet.Packet{Data: o.UDP(c4, s4, data(9))})
	if r := p.VerifyChecksum(); r != packet.OK {
		t.Errorf("IPv4: %v, want ok", r)
	}
	p.AdjustChecksum(packet.Delta16(1, 2), packet.Delta16(3, 4))
	if p.Data[26] != 0 || p.Data[27] != 0 {
		t.Error("IPv4: no checksum became one")
	}
	for _, g := range []packet.GSO{{}, {Verified: true}} {
		p = mustParse(t, &packet.Packet{Data: o.UDP(c6, s6, data(9)), GSO: g})
		if r := p.VerifyChecksum(); r != packet.BadChecksum {
			t.Errorf("IPv6 %+v: %v, want %v", g, r, packet.BadChecksum)
		}
	}
}

// TestAdjustChecksum rewrites address and port in place and checks the result
// as a receiver would, for every protocol, complete and partial.
func TestAdjustChecksum(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		l4, src := 20, 12
		to := netip.MustParseAddr("10.0.1.50")
		if v == 6 {
			l4, src = 40, 8
			to = netip.MustParseAddr("fd00:1::50")
		}
		for _, pk := range []packet.Packet{
			{Data: pkt.TCP(c, s, packet.ACK, 1, 2, data(33))},
			{Data: pkt.UDP(c, s, data(33))},
			pkt.Partial(pkt.TCP(c, s, packet.ACK, 1, 2, data(33))),
			pkt.Partial(pkt.UDP(c, s, data(33))),
			{Data: pkt.Echo(c.Addr(), s.Addr(), c.Port(), 2, pkt.Request, data(33))},
		} {
			p := mustParse(t, &pk)
			old, new := p.Src, packet.AddrFrom(to)
			port := l4
			if p.IsEchoRequest() {
				port = l4 + 4
			}
			binary.BigEndian.PutUint16(p.Data[port:], 0x4242)
			copy(p.Data[src:], to.AsSlice())
			p.AdjustChecksum(packet.AddrDelta(&old, &new), packet.Delta16(c.Port(), 0x4242))
			out := pkt.Edit(p.Data, func([]byte) {}) // the IPv4 header is not its business
			if pk.GSO.Partial {
				// What the kernel does: add up from the checksum field on.
				sum := ^packet.Checksum(out[l4:], 0)
				if p.Proto == packet.ProtoUDP && sum == 0 {
					sum = 0xffff
				}
				binary.BigEndian.PutUint16(out[l4+int(pk.GSO.CsumOffset):], sum)
			}
			if err := pkt.Check(out); err != nil {
				t.Errorf("IPv%d protocol %d, partial %v: %v", v, p.Proto, pk.GSO.Partial, err)
			}
		}
	}
}
