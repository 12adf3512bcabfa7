package bench

import (
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tc.in); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := &Report{Modes: []string{"kernel", Yardstick, "spillway"}, Values: map[string]map[string][]float64{},
		Failed:     map[string]string{"spillway": "round 2: a\nb"},
		Conditions: Conditions{Date: "D", Kernel: "K", CPU: "C", Cores: 2, Go: "G", Load: "0.1", Congestion: "cubic", Rounds: 3, Secs: 4}}
	for _, v := range []float64{3, 2, 4} {
		r.add(Yardstick, "a", v)
	}
	r.add("kernel", "a", 43.5)
	r.add("spillway", "a", 4.5)
	r.add("spillway", "b", 123.4) // the yardstick has none: no ratio
	want := `Measured D: kernel K, C, 2 cores, G, load before 0.1. TCP cubic on every connection. 3 interleaved rounds of 4 s;
median (smallest-largest), ratio to wireguard-go + nft. MTU 1500 and veth offloads on unless the row says otherwise. Only ratios within one run count.

| | kernel | wireguard-go | spillway |
|---|---|---|---|
| a | 43.5 **14.50x** | 3.00 (2.00-4.00) | 4.50 **1.50x** |
| b | - | - | 123 |

spillway failed: round 2: a; b
`
	if got := r.Markdown([]string{"a", "b", "never measured"}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, ok := r.Ratio("b", "spillway"); ok {
		t.Error("a ratio to nothing")
	}
	r.Conditions.Cut = true
	if !strings.Contains(r.Markdown(nil), "cut short") {
		t.Error("a run that was cut short does not say so")
	}
}
