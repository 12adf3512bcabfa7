//go:build netns && linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// TestS32_BulkIsIntactInBoundedMemory moves a gigabyte each way through one
// task and looks at the memory of both roles afterwards.
func TestS32_BulkIsIntactInBoundedMemory(t *testing.T) {
	w := begin(t, scene{Attach: true})
	for _, m := range []struct {
		to    netip.Addr
		verb  string
		bytes int64
	}{
		{w.server.Addr4, "put", 1 << 30}, {w.server.Addr4, "get", 1 << 30},
		{w.server.Addr6, "put", 256 << 20}, {w.server.Addr6, "get", 256 << 20},
	} {
		rate, err := w.move(w.Tasks[0], m.to, m.verb, m.bytes, 2*time.Minute)
		if err != nil {
			t.Fatalf("%s %d MB, server %v: %v", m.verb, m.bytes>>20, m.to, err)
		}
		t.Logf("%s %4d MB, server %v: %.2f Gb/s, SHA-256 equal at both ends", m.verb, m.bytes>>20, m.to, rate/1e9)
	}
	for _, n := range []struct {
		node *spill.Node
		role string
	}{{w.egress, "egress"}, {w.host, "host"}} {
		st := must(n.node.Role(w.ctx, n.role))(t)
		peak := must(peakRSS(st.PID))(t)
		t.Logf("%s: peak resident memory %.1f MB", n.role, float64(peak)/(1<<20))
		if peak > 64<<20 {
			t.Errorf("the %s role took %.1f MB of memory, at most 64 are allowed", n.role, float64(peak)/(1<<20))
		}
	}
}

// peakRSS is the most memory a process ever had resident, in bytes.
func peakRSS(pid int) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d tells no VmHWM", pid)
}

// TestS26_IsolatedSubnetCarriesEverything: the same with the subnet in a
// namespace of its own, where the machine's addresses are not.
func TestS26_IsolatedSubnetCarriesEverything(t *testing.T) {
	w := begin(t, scene{Pair: spill.Pair{Isolate: "netns"}, Attach: true})
	check(t, w.reach(w.Tasks[0]))
	for _, a := range families(w.server) {
		for _, verb := range []string{"put", "get"} {
			if _, err := w.move(w.Tasks[0], a, verb, 64<<20, time.Minute); err != nil {
				t.Errorf("%s, server %v: %v", verb, a, err)
			}
		}
	}
	if links, err := w.Egress[0].Conn.Links(); err != nil {
		t.Error(err)
	} else {
		for _, l := range links {
			if l.Name == netlab.EgressLink {
				t.Errorf("%s is still in the machine's own namespace", l.Name)
			}
		}
	}
	// The customer's network is not reached from the machine itself.
	if err := w.refused(w.Egress[0], at(w.server.Addr4, 80)); err != nil {
		t.Errorf("the egress machine itself: %v", err)
	}
}
