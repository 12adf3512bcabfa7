package flowtable

import (
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

// TestSweepPassesNothingOver: a table that grows while it is swept keeps no
// expired flow for longer than one round.
func TestSweepPassesNothingOver(t *testing.T) {
	const old = 1000
	tab := openTable(t, Config{MaxFlows: 4096, MaxFlowsPerTask: 4096})
	insert := func(task uint32, port int, now Mono) {
		f := flowOf(protoUDP, task, uint16(port))
		f.OutsidePort = uint16(port)
		if _, r := tab.Insert(&f, &Segment{Wire: 1, Bytes: 40}, now); r != packet.OK {
			t.Fatalf("flow %d: %v", port, r)
		}
	}
	for i := range old {
		insert(1, 2000+i, start)
	}
	now := start.Add(10 * time.Minute)
	removed := 0
	for i := 0; i < 13; i++ { // 13 steps of 100 cover the 1,000 and the 78 that come meanwhile
		for j := range 6 {
			insert(2, 10_000+6*i+j, now)
		}
		removed += tab.Sweep(now, 100)
	}
	if removed != old {
		t.Errorf("%d of %d expired flows were swept: the rest hold their ports", removed, old)
	}
}
