package bench

import (
	"fmt"
	"slices"
	"strings"
)

// Yardstick is the mode that ratios refer to.
const Yardstick = "wireguard-go"

// Report is what a run measured. As JSON it is the data behind the table.
type Report struct {
	Conditions Conditions                      `json:"conditions"`
	Modes      []string                        `json:"modes"`
	Values     map[string]map[string][]float64 `json:"values"` // metric to mode to rounds
	Failed     map[string]string               `json:"failed,omitempty"`
}

// Conditions are what the figures depend on.
type Conditions struct {
	Date       string   `json:"date"`
	Kernel     string   `json:"kernel"`
	CPU        string   `json:"cpu"`
	Cores      int      `json:"cores"`
	Load       string   `json:"load"` // one-minute load average before the run
	Go         string   `json:"go"`
	Congestion string   `json:"congestion_control"`
	Rounds     int      `json:"rounds"`
	Secs       int      `json:"seconds"`
	Scenarios  []string `json:"scenarios"`
	Cut        bool     `json:"cut,omitempty"` // ended before all rounds were done
}

func (r *Report) add(mode, metric string, v float64) {
	if r.Values[metric] == nil {
		r.Values[metric] = map[string][]float64{}
	}
	r.Values[metric][mode] = append(r.Values[metric][mode], v)
}

// median of a list that is not empty; of an even number, the mean of the two
// in the middle.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// Ratio is a mode's median of a metric relative to the yardstick's, and false
// where one of the two is missing or zero.
func (r *Report) Ratio(metric, mode string) (float64, bool) {
	a, b := r.Values[metric][mode], r.Values[metric][Yardstick]
	if len(a) == 0 || len(b) == 0 || median(b) == 0 {
		return 0, false
	}
	return median(a) / median(b), true
}

// Markdown is the table: a row for each metric, a column for each mode;
// median, smallest and largest value, ratio to the yardstick.
func (r *Report) Markdown(metrics []string) string {
	var b strings.Builder
	c := r.Conditions
	fmt.Fprintf(&b, "Measured %s: kernel %s, %s, %d cores, %s, load before %s. TCP %s on every connection. %d interleaved rounds of %d s;\n"+
		"median (smallest-largest), ratio to %s + nft. MTU 1500 and veth offloads on unless the row says otherwise. Only ratios within one run count.\n\n",
		c.Date, c.Kernel, c.CPU, c.Cores, c.Go, c.Load, c.Congestion, c.Rounds, c.Secs, Yardstick)
	if c.Cut {
		b.WriteString("The run was cut short.\n\n")
	}
	b.WriteString("| |")
	for _, m := range r.Modes {
		fmt.Fprintf(&b, " %s |", m)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.Modes)) + "\n")
	for _, metric := range metrics {
		if len(r.Values[metric]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "| %s |", metric)
		for _, m := range r.Modes {
			fmt.Fprintf(&b, " %s |", r.cell(metric, m))
		}
		b.WriteString("\n")
	}
	for _, m := range r.Modes {
		if why := r.Failed[m]; why != "" {
			fmt.Fprintf(&b, "\n%s failed: %s\n", m, strings.ReplaceAll(why, "\n", "; "))
		}
	}
	return b.String()
}

func (r *Report) cell(metric, mode string) string {
	v := r.Values[metric][mode]
	if len(v) == 0 {
		return "-"
	}
	s := figure(median(v))
	if len(v) > 1 {
		s += fmt.Sprintf(" (%s-%s)", figure(slices.Min(v)), figure(slices.Max(v)))
	}
	if q, ok := r.Ratio(metric, mode); ok && mode != Yardstick {
		s += fmt.Sprintf(" **%.2fx**", q)
	}
	return s
}

// figure is a number with three digits that mean something.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
