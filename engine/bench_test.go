package engine

import (
	"fmt"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// ladder is the packets of one rung: a batch that is filled again before every
// run, because the path rewrites packets in place.
type ladder struct {
	batch   *packet.Batch
	data    []packet.Packet
	perData int // wire packets of one of data
}

const benchBatch = 64

func newLadder(p packet.Packet) *ladder {
	l := &ladder{batch: packet.NewBatch(), perData: p.GSO.Segments(len(p.Data) - int(p.GSO.HdrLen))}
	n := min(benchBatch, packet.ArenaSize/(len(p.Data)+128))
	for range n {
		l.data = append(l.data, p)
	}
	return l
}

func (l *ladder) fill() *packet.Batch {
	l.batch.Reset()
	for i := range l.data {
		pk := l.batch.Append(l.data[i].Data)
		pk.GSO, pk.Port, pk.Peer = l.data[i].GSO, l.data[i].Port, l.data[i].Peer
	}
	return l.batch
}

// run measures f over batches and reports the time of one wire packet.
func (l *ladder) run(b *testing.B, f func(*packet.Batch)) {
	b.Helper()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		f(l.fill())
		n += len(l.data) * l.perData
	}
	if len(l.batch.Packets[0].Data) == 0 {
		b.Fatal("packets were refused: this measures something else")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkHops is the time that each hop takes for a packet, the copy into
// the batch included: the first rung is that copy alone.
func BenchmarkHops(b *testing.B) {
	for _, f := range families() {
		for _, size := range []int{64, 1300} {
			r := newRig(b)
			port := r.handshake(f, 4000)
			hv, ev := r.host.host.Load(), r.egress.egress.Load()
			body := make([]byte, size)
			out := packet.Packet{Data: pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1001, 5001, body), Port: taskPort, Peer: hostPeer}
			in := packet.Packet{Data: pkt.TCP(ap(f.server, 80), ap(f.outside, port), packet.ACK, 5001, 1001, body), Port: subnetPort}
			back := packet.Packet{Data: pkt.TCP(ap(f.server, 80), ap(f.task, 4000), packet.ACK, 5001, 1001, body)}
			name := func(hop string) string { return fmt.Sprintf("%s/%s/%dB", hop, f.name, size) }
			b.Run(name("copy"), func(b *testing.B) { newLadder(out).run(b, func(*packet.Batch) {}) })
			b.Run(name("host-out"), func(b *testing.B) {
				newLadder(out).run(b, func(p *packet.Batch) { r.hostW.hostOutbound(hv, p) })
			})
			b.Run(name("endpoint-out"), func(b *testing.B) {
				newLadder(out).run(b, func(p *packet.Batch) { r.out.egressOutbound(ev, p) })
			})
			b.Run(name("endpoint-in"), func(b *testing.B) {
				newLadder(in).run(b, func(p *packet.Batch) { r.in.egressInbound(ev, p) })
			})
			b.Run(name("host-in"), func(b *testing.B) {
				newLadder(back).run(b, func(p *packet.Batch) { r.back.hostInbound(hv, p) })
			})
			b.Run(name("way-out"), func(b *testing.B) {
				newLadder(out).run(b, func(p *packet.Batch) {
					r.hostW.hostOutbound(hv, p)
					for i := range p.Packets {
						p.Packets[i].Peer = hostPeer
					}
					r.out.egressOutbound(ev, p)
				})
			})
		}
	}
}

// BenchmarkSuperPacket is the way out for super-packets of 32 segments.
func BenchmarkSuperPacket(b *testing.B) {
	for _, f := range families() {
		r := newRig(b)
		r.handshake(f, 4000)
		// Room for the whole of it in the receiver's window.
		data := pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1001, 5001, make([]byte, 32*1300))
		p := pkt.Super(data, 1300)
		p.Port, p.Peer = taskPort, hostPeer
		hv, ev := r.host.host.Load(), r.egress.egress.Load()
		b.Run("host-out/"+f.name, func(b *testing.B) {
			newLadder(p).run(b, func(p *packet.Batch) { r.hostW.hostOutbound(hv, p) })
		})
		b.Run("endpoint-out/"+f.name, func(b *testing.B) {
			newLadder(p).run(b, func(p *packet.Batch) { r.out.egressOutbound(ev, p) })
		})
	}
}

// BenchmarkNewFlow is what a first packet costs at the endpoint: policy, port,
// entry, and the end of the flow it takes the place of.
func BenchmarkNewFlow(b *testing.B) {
	for _, f := range families() {
		b.Run("endpoint-out/"+f.name, func(b *testing.B) {
			r := newRig(b)
			ev, table := r.egress.egress.Load(), r.slot().table
			l := newLadder(packet.Packet{Data: pkt.UDP(ap(f.task, 1), ap(f.server, 53), []byte("x")), Peer: hostPeer})
			sport := uint16(0)
			l.run(b, func(p *packet.Batch) {
				for i := range p.Packets {
					sport++
					renumber(p.Packets[i].Data, f, "udp", 1024+sport%60000)
				}
				r.out.egressOutbound(ev, p)
				if table.Len() >= 3500 { // nearly full: let all of them idle out
					b.StopTimer()
					r.clock.Advance(130e9)
					for table.Len() > 0 {
						table.Sweep(r.clock.Mono(), 1<<16)
					}
					b.StartTimer()
				}
			})
		})
	}
}
