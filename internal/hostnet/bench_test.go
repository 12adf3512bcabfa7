//go:build netns && linux

package hostnet_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
)

// BenchmarkAttach times an attach with both families, both guards and the
// creation of a TUN, and reports the median of each step in microseconds.
func BenchmarkAttach(b *testing.B) {
	l, err := netlab.New(netlab.Config{V6: true})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	steps := map[string][]time.Duration{}
	var order []string
	var total []time.Duration
	for range max(b.N, 1) {
		start := time.Now()
		a, err := hostnet.Prepare(hostnet.AttachConfig{NS: l.Tasks[0].NS, Host: l.Host.NS, Addr4: inner4, Addr6: inner6})
		if err != nil {
			b.Fatal(err)
		}
		t := time.Now()
		var tun *os.File
		tun, err = plainTUN(l.Tasks[0].NS, "spill0")
		if err != nil {
			b.Fatal(err)
		}
		open := time.Since(t)
		if err := a.Configure(); err != nil {
			b.Fatal(err)
		}
		total = append(total, time.Since(start))
		for _, s := range append(a.Steps(), hostnet.Step{Name: "TUN", Took: open}) {
			if steps[s.Name] == nil {
				order = append(order, s.Name)
			}
			steps[s.Name] = append(steps[s.Name], s.Took)
		}
		t = time.Now()
		tun.Close()
		if err := a.Detach(hostnet.DetachOptions{}); err != nil {
			b.Fatal(err)
		}
		if steps["detach"] == nil {
			order = append(order, "detach")
		}
		steps["detach"] = append(steps["detach"], time.Since(t))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds())
	}
	for _, name := range order {
		b.ReportMetric(median(steps[name]), strings.ReplaceAll(name, " ", "-")+"-µs")
	}
	b.ReportMetric(median(total), "p50-µs/attach")
}
