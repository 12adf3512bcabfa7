//go:build !race

// These fill whole ranges of ports in one goroutine: minutes under the race
// detector, which has nothing to find in them.

package nat

import (
	"math"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestJ9_GreedyTaskMeetsItsCapQuietOnesTheirMinimum is one story: one task takes
// all it can of one destination (L5: 95 % of the range at least), then quiet
// ones come until the range is full; another destination has as many beside it,
// and no two flows share an outside tuple (U3).
func TestJ9_GreedyTaskMeetsItsCapQuietOnesTheirMinimum(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, bulk, Config{Reserved: []PortRange{{51820, 51820}, {8000, 8009}}})
		const pool = portCount - 11
		// UDP, because a task may not have that many handshakes under way.
		p := parse(t, pkt.UDP(at(f.task, 1), at(f.server, 5432), nil))
		in, r := w.fill(p, 1, 0, 1<<16)
		if r != packet.TaskPortLimit || in != pool-DefaultReserve {
			t.Fatalf("%s: one task got %d flows, then %v; want %d, then its cap", f.name, in, r, pool-DefaultReserve)
		}
		if in < 55_000 || in*100 < pool*95 {
			t.Fatalf("%s: refused at %d of %d ports: L5 asks for 95 %%", f.name, in, pool)
		}
		served := 0
		for task := uint32(2); ; task++ {
			p.Src[15], p.Src[14] = byte(task), byte(task>>8)+9
			in, r := w.fill(p, task, 0, 1000)
			served += in
			if r != packet.PortsExhausted {
				t.Fatalf("%s: task %d got %d flows, then %v", f.name, task, in, r)
			}
			if in != DefaultMinimum {
				break
			}
		}
		if served != DefaultReserve {
			t.Errorf("%s: %d flows for quiet tasks, want the reserve of %d", f.name, served, DefaultReserve)
		}
		if taken, _ := w.m.Ports(protoUDP, packet.AddrFrom(f.server), 5432, 1); taken != pool {
			t.Errorf("%s: %d ports taken, want %d", f.name, taken, pool)
		}
		// Another destination has ports of its own: another port is enough.
		p = parse(t, pkt.UDP(at(f.task, 1), at(f.server, 5433), nil))
		if in, r := w.fill(p, 1, 0, 1<<16); in != pool-DefaultReserve {
			t.Errorf("%s: second destination: %d flows, then %v", f.name, in, r)
		}
		w.checkTable()
		if st := w.m.Stats(); st.Destinations != 2 || st.Hot != 2 || st.Pool != pool || st.Busiest != pool {
			t.Errorf("%s: stats %+v", f.name, st)
		}
		w.removeAll()
		w.checkEmpty()
	}
}

// TestZ10_QuietTaskUnderAttack: while one task fills the destination as fast as
// it can, a quiet one is never refused.
func TestZ10_QuietTaskUnderAttack(t *testing.T) {
	w := newWorld(t, bulk, Config{})
	loud := parse(t, pkt.UDP(at(task4, 1), at(server4, 5432), nil))
	quiet := parse(t, pkt.UDP(at(innerAddr(900), 1), at(server4, 5432), nil))
	for i := range DefaultMinimum {
		w.fill(loud, 1, i*256, 256)
		if _, r := w.fill(quiet, 2, i, 1); r != packet.OK {
			t.Fatalf("the quiet task's flow %d: %v", i, r)
		}
	}
	if _, mine := w.m.Ports(protoUDP, packet.AddrFrom(server4), 5432, 2); mine != DefaultMinimum {
		t.Errorf("the quiet task has %d ports", mine)
	}
}

// TestU12_LastPortIsFound: with all limits off, every single port of a
// destination is given out.
func TestU12_LastPortIsFound(t *testing.T) {
	w := newWorld(t, bulk, Config{Limits: Limits{Reserve: -1, Minimum: -1}})
	p := udpFlow(t, families[0])
	in, r := w.fill(p, 1, 0, 1<<16)
	if in != portCount || r != packet.TaskPortLimit {
		t.Fatalf("%d flows, then %v; want every one of %d ports", in, r, portCount)
	}
	w.checkTable()
}

// TestU1_IndependentMapping: one port for one socket, whatever the
// destination, and for no other socket.
func TestU1_IndependentMapping(t *testing.T) {
	w := newWorld(t, bulk, Config{UDP: Independent})
	owner := map[uint16]netip.AddrPort{}
	for i := range 3000 {
		from := at(innerAddr(i/1000), uint16(i%1000))
		var port uint16
		for d := range 3 {
			_, got := w.mustAdmit(pkt.UDP(from, at(server4, uint16(d+1)), nil), uint32(i/1000))
			if d > 0 && got != port {
				t.Fatalf("%v has ports %d and %d", from, port, got)
			}
			port = got
		}
		if o, ok := owner[port]; ok {
			t.Fatalf("port %d belongs to %v and %v", port, o, from)
		}
		owner[port] = from
	}
	if st := w.m.Stats(); st.Pinned != 3000 {
		t.Errorf("%d sockets are pinned, want 3000", st.Pinned)
	}
	// TCP is not pinned: as many flows as ports to each destination.
	p := parse(t, pkt.Echo(task4, server4, 1, 1, pkt.Request, nil))
	if in, r := w.fill(p, 9, 0, 60_000); in != 60_000 {
		t.Errorf("%d echo flows, then %v", in, r)
	}
	// All UDP sockets share one range: the rest of it, then the end.
	p = udpFlow(t, families[0])
	if in, r := w.fill(p, 7, 0, 1<<16); in != portCount-DefaultReserve-3000 || r != packet.PortsExhausted {
		t.Errorf("%d more sockets, then %v", in, r)
	}
	w.removeAll()
	w.checkEmpty()
}

// TestNewCountsWhatIsThere: after a restart the mapper knows the flows that
// the table kept.
func TestNewCountsWhatIsThere(t *testing.T) {
	for _, mapping := range []Mapping{PerDestination, Independent} {
		w := newWorld(t, bulk, Config{UDP: mapping})
		p := udpFlow(t, families[0])
		if in, _ := w.fill(p, 1, 0, 30_000); in != 30_000 {
			t.Fatalf("%d flows", in)
		}
		old := w.m
		var err error
		if w.m, err = New(Config{Table: w.ft, Secret: [32]byte{1, 2, 3, 31: 9}, V4: out4, UDP: mapping}); err != nil {
			t.Fatal(err)
		}
		a, b := old.Stats(), w.m.Stats()
		a.Bytes, b.Bytes = 0, 0
		if a != b {
			t.Errorf("before %+v, after %+v", a, b)
		}
		if in, r := w.fill(p, 1, 30_000, 1<<16-30_000); in != portCount-DefaultReserve-30_000 || r != packet.TaskPortLimit {
			t.Errorf("%d more flows, then %v", in, r)
		}
		w.checkTable()
		w.removeAll()
		w.checkEmpty()
	}
}

// TestL5_SecondChoicesAreSpreadToo: with the range half full, what a socket gets
// in place of its own port is spread as well, and not near it.
func TestL5_SecondChoicesAreSpreadToo(t *testing.T) {
	w := newWorld(t, bulk, Config{})
	p := parse(t, pkt.UDP(at(task4, 0), at(server4, 1), nil))
	var s flowtable.Segment
	flowtable.SegmentOf(p, &s)
	const buckets = 63
	counts := make([]int, buckets)
	second, near := 0, 0
	for i := range 58_000 {
		p.SrcPort = uint16(i)
		ref, r := w.m.Admit(p, &s, Meta{}, start)
		if r != packet.OK {
			t.Fatal(r)
		}
		k := flowtable.TupleOf(p)
		own := int(newWalk(w.m.socketKey(&k), 0).at)
		_, port := w.ft.Entry(ref).Outside()
		if d := (int(port) - FirstPort - own + portCount) % portCount; d != 0 {
			second++
			counts[d*buckets/portCount]++
			if d < 16 || d > portCount-16 {
				near++
			}
		}
	}
	if second < 15_000 {
		t.Fatalf("only %d sockets did not get their own port", second)
	}
	if d := chiSquare(counts); math.Abs(d) > 6 {
		t.Errorf("distances from the own port are %.1f deviations from even", d)
	}
	if near > second/500 {
		t.Errorf("%d of %d second choices are next to the first", near, second)
	}
}
