package packet_test

import (
	"fmt"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestNoAllocs: nothing here allocates per packet.
func TestNoAllocs(t *testing.T) {
	var p packet.Parsed
	var s packet.Segmenter
	b := packet.NewBatch()
	buf := make([]byte, 2000)
	for _, v := range []int{4, 6} {
		c, sv := ends(v)
		src := packet.AddrFrom(sv.Addr())
		syn := packet.Packet{Data: pkt.Opts{TCPOptions: pkt.MSS(1460)}.TCP(c, sv, packet.SYN, 1, 0, nil)}
		udp := packet.Packet{Data: pkt.UDP(c, sv, data(1000))}
		echo := packet.Packet{Data: pkt.Echo(c.Addr(), sv.Addr(), 1, 2, pkt.Request, data(56))}
		bad := packet.Packet{Data: pkt.Raw(c.Addr(), sv.Addr(), 47, data(56))}
		tso := pkt.Super(pkt.TCP(c, sv, packet.ACK, 1, 2, data(10000)), 1400)
		uso := pkt.Super(pkt.UDP(c, sv, data(10000)), 1400)
		for name, f := range map[string]func(){
			"Parse tcp":      func() { p.Parse(&syn) },
			"Parse udp":      func() { p.Parse(&udp) },
			"Parse echo":     func() { p.Parse(&echo) },
			"Parse refused":  func() { p.Parse(&bad) },
			"Parse super":    func() { p.Parse(&tso) },
			"VerifyChecksum": func() { p.Parse(&udp); p.VerifyChecksum() },
			"DecrementTTL":   func() { p.Parse(&udp); p.TTL = 64; p.DecrementTTL() },
			"ClampMSS":       func() { p.Parse(&syn); p.ClampMSS(1380) },
			"AddrDelta":      func() { p.Parse(&syn); p.AdjustChecksum(packet.AddrDelta(&p.Src, &p.Dst), packet.Delta16(1, 2)) },
			"AppendReset":    func() { b.Reset(); p.Parse(&syn); packet.AppendReset(b, &p) },
			"AppendICMPError": func() {
				b.Reset()
				p.Parse(&udp)
				packet.AppendICMPError(b, &p, packet.AdminProhibited, src, 0)
			},
			"Segmenter tcp": func() { segmentAll(&s, &tso, buf) },
			"Segmenter udp": func() { segmentAll(&s, &uso, buf) },
			"Segmenter one": func() { segmentAll(&s, &udp, buf) },
			"Reason.String": func() { _ = packet.BadOffload.String() },
		} {
			t.Run(fmt.Sprintf("IPv%d %s", v, name), func(t *testing.T) {
				if n := testing.AllocsPerRun(100, f); n != 0 {
					t.Errorf("%v allocations, want 0", n)
				}
			})
		}
	}
}

func segmentAll(s *packet.Segmenter, pk *packet.Packet, buf []byte) {
	s.Start(pk)
	for more := true; more; {
		_, more = s.Next(buf)
	}
}
