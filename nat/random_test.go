package nat

import (
	"math"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// chiSquare returns how far counts are from even, in standard deviations.
func chiSquare(counts []int) float64 {
	total := 0
	for _, n := range counts {
		total += n
	}
	want := float64(total) / float64(len(counts))
	sum := 0.0
	for _, n := range counts {
		d := float64(n) - want
		sum += d * d / want
	}
	free := float64(len(counts) - 1)
	return (sum - free) / math.Sqrt(2*free)
}

// TestL5_PortsAreSpreadEvenly: the ports of inner sockets that count up, which
// is what kernels and attackers do, are even over the range, and so are the
// distances between neighbours: knowing one port, or a thousand, tells nothing
// about the next (L6: 15.9 bits of 16).
func TestL5_PortsAreSpreadEvenly(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, bulk, Config{})
		const n, buckets = 60_000, 252
		ports, steps := make([]int, buckets), make([]int, buckets)
		low, high := 0, 0
		last, lastStep, repeats := 0, 0, 0
		p := parse(t, pkt.UDP(at(f.task, 0), at(f.server, 1), nil))
		for i := range n {
			p.SrcPort = uint16(i)
			k := flowtable.TupleOf(p)
			at := int(newWalk(w.m.socketKey(&k), 0).at)
			step := (at - last + portCount) % portCount
			ports[at*buckets/portCount]++
			steps[step*buckets/portCount]++
			if step == lastStep {
				repeats++
			}
			last, lastStep = at, step
			low, high = low+at&1, high+at>>15&1
		}
		for name, counts := range map[string][]int{"ports": ports, "distances": steps} {
			if d := chiSquare(counts); math.Abs(d) > 5 {
				t.Errorf("%s: %s are %.1f deviations from even", f.name, name, d)
			}
		}
		if repeats > 10 {
			t.Errorf("%s: the same distance twice in a row %d times", f.name, repeats)
		}
		if math.Abs(float64(low)-n/2) > 5*math.Sqrt(n)/2 {
			t.Errorf("%s: %d of %d ports are odd", f.name, low, n)
		}
	}
}
