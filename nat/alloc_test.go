//go:build !race

// The race detector allocates, and its times say nothing.

package nat

import (
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestNoAllocs runs everything that a packet meets in this package.
func TestNoAllocs(t *testing.T) {
	for _, f := range families {
		a := packet.AddrFrom(f.outer)
		inner := packet.AddrFrom(f.task)
		for name, data := range map[string][]byte{
			"tcp":  pkt.TCP(at(f.task, 40000), at(f.server, 443), packet.ACK, 1, 1, big(800)),
			"udp":  pkt.UDP(at(f.task, 40000), at(f.server, 443), big(800)),
			"echo": pkt.Echo(f.task, f.server, 7, 1, pkt.Request, nil),
		} {
			p := parse(t, data)
			if n := testing.AllocsPerRun(100, func() {
				RewriteSource(p, a, 50000)
				RewriteDestination(p, inner, 443)
			}); n != 0 {
				t.Errorf("%s %s: a rewrite allocates %v times", f.name, name, n)
			}
		}

		w := newWorld(t, bulk, Config{})
		ref, port := w.mustAdmit(pkt.UDP(at(f.task, 40000), at(f.server, 443), nil), 1)
		e := w.ft.Entry(ref)
		in := pkt.ICMP(f.router, f.outer, errorKinds(f)[1].typ, 1, 0, pkt.UDP(at(f.outer, port), at(f.server, 443), big(64)))
		out := pkt.ICMP(f.task, f.server, errorKinds(f)[1].typ, 1, 0, pkt.UDP(at(f.server, 443), at(f.task, 40000), big(64)))
		pi, po := parse(t, in), parse(t, out)
		if n := testing.AllocsPerRun(100, func() {
			copy(pi.Data, in)
			pi.Dst = a
			copy(po.Data, out)
			po.Src = inner
			if RewriteErrorInbound(pi, e) != packet.OK || RewriteErrorOutbound(po, e) != packet.OK {
				t.Fatal("error refused")
			}
		}); n != 0 {
			t.Errorf("%s: translating errors allocates %v times", f.name, n)
		}

		// A cold destination, one with a port set, one full up to its cap.
		for _, there := range []int{0, 2000, portCount} {
			w := newWorld(t, bulk, Config{})
			p := parse(t, pkt.UDP(at(f.task, 1), at(f.server, 443), nil))
			w.fill(p, 1, 1, there)
			var s flowtable.Segment
			flowtable.SegmentOf(p, &s)
			p.SrcPort = 65535
			if n := testing.AllocsPerRun(200, func() {
				ref, r := w.m.Admit(p, &s, Meta{Task: 1}, start)
				if r == packet.OK {
					w.ft.Remove(ref)
				} else if r != packet.TaskPortLimit {
					t.Fatalf("refused: %v", r)
				}
			}); n != 0 {
				t.Errorf("%s: Admit with %d flows there allocates %v times", f.name, there, n)
			}
		}
	}
}

func BenchmarkRewriteSource(b *testing.B) {
	for _, f := range families {
		for name, data := range map[string][]byte{
			"tcp": pkt.TCP(at(f.task, 40000), at(f.server, 443), packet.ACK, 1, 1, big(1200)),
			"udp": pkt.UDP(at(f.task, 40000), at(f.server, 443), nil),
		} {
			b.Run(f.name+"/"+name, func(b *testing.B) {
				p := parse(b, data)
				a := [2]packet.Addr{packet.AddrFrom(f.outer), packet.AddrFrom(f.task)}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					RewriteSource(p, a[i&1], uint16(50000+i&1))
				}
			})
		}
	}
}

func BenchmarkRewriteErrorInbound(b *testing.B) {
	for _, f := range families {
		b.Run(f.name, func(b *testing.B) {
			w := newWorld(b, bulk, Config{})
			ref, port := w.mustAdmit(pkt.UDP(at(f.task, 40000), at(f.server, 443), nil), 1)
			e := w.ft.Entry(ref)
			in := pkt.ICMP(f.router, f.outer, errorKinds(f)[1].typ, 1, 0, pkt.UDP(at(f.outer, port), at(f.server, 443), big(64)))
			p := parse(b, in)
			b.ReportAllocs()
			for b.Loop() {
				copy(p.Data, in)
				p.Dst = packet.AddrFrom(f.outer)
				if RewriteErrorInbound(p, e) != packet.OK {
					b.Fatal("refused")
				}
			}
		})
	}
}

// BenchmarkAdmit is one new flow and its end, flow table included: to a
// destination with nothing, half and 95 % of its ports taken.
func BenchmarkAdmit(b *testing.B) {
	for _, c := range []struct {
		name  string
		there int
	}{{"quiet", 100}, {"half", portCount / 2}, {"95%", 61_200}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, bulk, Config{})
			p := parse(b, pkt.UDP(at(task4, 1), at(server4, 443), nil))
			w.fill(p, 1, 0, c.there)
			var s flowtable.Segment
			flowtable.SegmentOf(p, &s)
			setTask(p, 77)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.SrcPort = uint16(i)
				ref, r := w.m.Admit(p, &s, Meta{Task: 1}, start)
				if r != packet.OK {
					b.Fatal(r)
				}
				w.ft.Remove(ref)
			}
		})
	}
}

// BenchmarkCount is the Mapper's own part of a new flow and its end: counts and
// choice of port, without the flow table.
func BenchmarkCount(b *testing.B) {
	for _, c := range []struct {
		name  string
		there int
	}{{"quiet", 100}, {"half", portCount / 2}, {"95%", 61_200}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b, bulk, Config{})
			p := parse(b, pkt.UDP(at(task4, 1), at(server4, 443), nil))
			w.fill(p, 1, 0, c.there)
			f := flowtable.Flow{Inner: flowtable.TupleOf(p), Outside: packet.AddrFrom(out4), Task: 1}
			l := w.m.limits.Load()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f.Inner.SrcPort = uint16(i)
				c := w.m.sharedClaim(&f, w.m.socketKey(&f.Inner))
				sh := w.m.shard(c.dest)
				if found, r := sh.reserve(&c, l, w.m.reserved); !found || r != packet.OK {
					b.Fatal(r)
				}
				sh.release(&c)
			}
		})
	}
}
