//go:build netns && linux

package device

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// The benchmarks tell the best batch besides the mean: on a busy machine only
// that says what the code costs.

// BenchmarkDrain measures what it takes to read small packets that wait in a
// TUN, and to read super-packets.
func BenchmarkDrain(b *testing.B) {
	for _, tt := range []struct {
		name           string
		n, size, train int
	}{{"64B", 120, 36, 1}, {"1200B", 120, 1200, 1}, {"super-50x1200B", 2, 1200, 50}} {
		b.Run(tt.name, func(b *testing.B) {
			s := newSpace(b)
			g := newGroup(b, Config{})
			add(b, g, 1, s.tun(TUNConfig{Name: "spill0"}, 1))
			var conn net.PacketConn
			var err error
			s.do(func() { conn, err = net.ListenPacket("udp4", "10.9.0.1:0") })
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			udp := conn.(*net.UDPConn)
			if tt.train > 1 {
				setSegment(b, udp, tt.size)
			}
			to := netip.MustParseAddrPort("10.9.0.2:9")
			data := make([]byte, tt.size*tt.train)
			best := time.Hour
			batch := NewBatch()
			b.ReportAllocs()
			for b.Loop() {
				for range tt.n {
					if _, err := udp.WriteToUDPAddrPort(data, to); err != nil {
						b.Fatal(err)
					}
				}
				packets := 0
				start := time.Now()
				for left := tt.n; left > 0; {
					if err := g.Read(batch); err != nil {
						b.Fatal(err)
					}
					for i := range batch.Packets {
						if batch.Packets[i].Data[0]>>4 == 4 {
							left--
							packets += batch.Packets[i].GSO.Segments(tt.size * tt.train)
						}
					}
				}
				best = min(best, time.Since(start)/time.Duration(packets))
			}
			b.ReportMetric(float64(best.Nanoseconds()), "best-ns/packet")
		})
	}
}

// BenchmarkWrite measures what it takes to give packets to the kernel, which
// then drops them for want of a route.
func BenchmarkWrite(b *testing.B) {
	const n, size = 46, 1400
	src, dst := netip.MustParseAddrPort("10.9.0.2:1"), netip.MustParseAddrPort("10.99.0.1:2")
	tcp := func(i int) []byte { return pkt.TCP(src, dst, packet.ACK, uint32(1+i*size), 1, make([]byte, size)) }
	for _, tt := range []struct {
		name string
		make func(i int) packet.Packet
	}{
		{"one-by-one", func(i int) packet.Packet { return plain(tcp(2 * i)) }},
		{"train-verified", func(i int) packet.Packet {
			return packet.Packet{Data: tcp(i), GSO: packet.GSO{Verified: true}}
		}},
		{"train-checked-here", func(i int) packet.Packet { return plain(tcp(i)) }},
		{"small-one-by-one", func(i int) packet.Packet { return plain(pkt.UDP(src, dst, make([]byte, 36+i%2))) }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			s := newSpace(b)
			g := newGroup(b, Config{})
			add(b, g, 1, s.tun(TUNConfig{Name: "spill0"}, 1))
			batch := NewBatch()
			for i := range n {
				p := tt.make(i)
				p.Port = 1
				pkt.OfPacket(batch, p)
			}
			best := time.Hour
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				g.Write(batch)
				best = min(best, time.Since(start))
			}
			b.ReportMetric(float64(best.Nanoseconds())/n, "best-ns/packet")
			if st, _ := g.Stats(1); st.WriteSegments == 0 || st.Drops != [packet.NumReasons]uint64{} {
				b.Errorf("%+v", st)
			}
		})
	}
}
