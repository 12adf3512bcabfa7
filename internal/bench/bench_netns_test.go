//go:build netns && linux

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A short run over the real kernel: every scenario gives a figure in every
// mode, and nothing is left behind.
func TestRunMeasuresEverything(t *testing.T) {
	for _, p := range []string{"iperf3", "nft", "go"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is not installed: the benchmark needs it", p)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Run(t.Context(), Config{Rounds: 1, Secs: 1, Modes: []string{ModeKernel, ModeWireGuard}, Self: self, Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	for mode, why := range rep.Failed {
		t.Errorf("%s failed: %s", mode, why)
	}
	for _, metric := range Metrics() {
		for _, mode := range rep.Modes {
			v := rep.Values[metric][mode]
			noTunnel := mode == ModeKernel && (metric == CPUUp || metric == CPUDown || metric == Memory)
			if noTunnel && len(v) != 0 {
				t.Errorf("%s has %s: %v", mode, metric, v)
			}
			if !noTunnel && len(v) != 1 {
				t.Errorf("%s: %s has %d values", mode, metric, len(v))
				continue
			}
			if !noTunnel && metric != ConnectsLost && v[0] <= 0 {
				t.Errorf("%s: %s is %v", mode, metric, v[0])
			}
		}
	}
	left, err := filepath.Glob(fmt.Sprintf("/var/run/wireguard/wgb*%d.sock", os.Getpid()))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}
