package packet_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

var (
	c4 = netip.MustParseAddrPort("100.112.0.5:40000")
	s4 = netip.MustParseAddrPort("10.0.1.20:5432")
	c6 = netip.MustParseAddrPort("[fd00:5::5]:40000")
	s6 = netip.MustParseAddrPort("[fd00:1::20]:5432")
)

// ends returns a client and a server of a family.
func ends(version int) (c, s netip.AddrPort) {
	if version == 4 {
		return c4, s4
	}
	return c6, s6
}

// sink keeps results alive.
var sink int

// data returns n bytes that differ from each other.
func data(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func BenchmarkParse(b *testing.B) {
	mss := pkt.Opts{TCPOptions: bytes.Repeat([]byte{1}, 12)}
	ext, first := pkt.Chain(packet.ProtoTCP, 0, 60, 43, 60)
	ext[2*8+2] = 4 // a segment routing header at its end
	for _, bm := range []struct {
		name string
		data []byte
	}{
		{"tcp4", mss.TCP(c4, s4, packet.ACK, 1, 2, data(1300))},
		{"tcp6", mss.TCP(c6, s6, packet.ACK, 1, 2, data(1300))},
		{"udp4", pkt.UDP(c4, s4, data(64))},
		{"udp6", pkt.UDP(c6, s6, data(64))},
		{"echo4", pkt.Echo(c4.Addr(), s4.Addr(), 1, 2, pkt.Request, data(56))},
		{"options4", pkt.Opts{IPOptions: bytes.Repeat([]byte{1}, 40)}.TCP(c4, s4, packet.ACK, 1, 2, nil)},
		{"extensions6", pkt.Opts{Extensions: ext, First: first}.TCP(c6, s6, packet.ACK, 1, 2, nil)},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			pk := packet.Packet{Data: bm.data}
			var p packet.Parsed
			for b.Loop() {
				if r := p.Parse(&pk); r != packet.OK {
					b.Fatal(r)
				}
			}
		})
	}
}

func BenchmarkVerifyChecksum(b *testing.B) {
	for _, bm := range []struct {
		name string
		data []byte
	}{
		{"tcp4/64B", pkt.TCP(c4, s4, packet.ACK, 1, 2, data(24))},
		{"tcp4/1400B", pkt.TCP(c4, s4, packet.ACK, 1, 2, data(1360))},
		{"tcp6/1400B", pkt.TCP(c6, s6, packet.ACK, 1, 2, data(1340))},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			pk := packet.Packet{Data: bm.data}
			var p packet.Parsed
			p.Parse(&pk)
			for b.Loop() {
				p.GSO.Verified = false
				if r := p.VerifyChecksum(); r != packet.OK {
					b.Fatal(r)
				}
			}
		})
	}
}

func BenchmarkDecrementTTL(b *testing.B) {
	b.ReportAllocs()
	pk := packet.Packet{Data: pkt.TCP(c4, s4, packet.ACK, 1, 2, nil)}
	var p packet.Parsed
	p.Parse(&pk)
	for b.Loop() {
		p.TTL = 64
		p.DecrementTTL()
	}
}

func BenchmarkClampMSS(b *testing.B) {
	b.ReportAllocs()
	opts := append(pkt.MSS(1460), 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7)
	pk := packet.Packet{Data: pkt.Opts{TCPOptions: opts}.TCP(c4, s4, packet.SYN, 1, 0, nil)}
	var p packet.Parsed
	p.Parse(&pk)
	for i := 0; b.Loop(); i++ {
		p.ClampMSS(uint16(60000 - i&0x7fff))
	}
}

func BenchmarkDelta(b *testing.B) {
	b.ReportAllocs()
	old, new := packet.AddrFrom(c4.Addr()), packet.AddrFrom(s4.Addr())
	var sum uint16
	for b.Loop() {
		sum = packet.AddrDelta(&old, &new).Plus(packet.Delta16(40000, 50000)).Full(sum)
	}
	sink = int(sum)
}

func BenchmarkAppendReset(b *testing.B) {
	b.ReportAllocs()
	pk := packet.Packet{Data: pkt.TCP(c4, s4, packet.ACK, 1, 2, nil)}
	var p packet.Parsed
	p.Parse(&pk)
	batch := packet.NewBatch()
	for b.Loop() {
		batch.Reset()
		if packet.AppendReset(batch, &p) == nil {
			b.Fatal("no reset")
		}
	}
}

func BenchmarkAppendICMPError(b *testing.B) {
	for _, v := range []int{4, 6} {
		b.Run(map[int]string{4: "4", 6: "6"}[v], func(b *testing.B) {
			b.ReportAllocs()
			c, s := ends(v)
			pk := packet.Packet{Data: pkt.TCP(c, s, packet.ACK, 1, 2, data(1300))}
			var p packet.Parsed
			p.Parse(&pk)
			src := packet.AddrFrom(s.Addr())
			batch := packet.NewBatch()
			for b.Loop() {
				batch.Reset()
				if packet.AppendICMPError(batch, &p, packet.AdminProhibited, src, 0) == nil {
					b.Fatal("no error")
				}
			}
		})
	}
}

// BenchmarkSegment reports the time per wire segment.
func BenchmarkSegment(b *testing.B) {
	for _, bm := range []struct {
		name string
		pk   packet.Packet
	}{
		{"tcp4", pkt.Super(pkt.Opts{TCPOptions: bytes.Repeat([]byte{1}, 12)}.TCP(c4, s4, packet.ACK|packet.PSH, 1, 2, data(64000)), 1368)},
		{"tcp6", pkt.Super(pkt.Opts{TCPOptions: bytes.Repeat([]byte{1}, 12)}.TCP(c6, s6, packet.ACK|packet.PSH, 1, 2, data(64000)), 1348)},
		{"udp4", pkt.Super(pkt.UDP(c4, s4, data(64000)), 1392)},
		{"udp4-64B", pkt.Super(pkt.UDP(c4, s4, data(64*64)), 64)},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			var s packet.Segmenter
			buf := make([]byte, 128<<10)
			total := 0
			for b.Loop() {
				if r := s.Start(&bm.pk); r != packet.OK {
					b.Fatal(r)
				}
				n, more, at := 0, true, 0
				for more {
					n, more = s.Next(buf[at : at+1500])
					at += n + 64
					total++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(total), "ns/segment")
		})
	}
}
