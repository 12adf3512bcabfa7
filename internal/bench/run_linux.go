package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Run measures and returns the report. A mode that fails is left out from
// then on, and the report says why; the error is for what stops everything.
// It takes about 20 times Secs for a mode and round, and ends early, with
// what there is, when ctx does.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "spillway-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	rep := &Report{Conditions: conditions(&cfg), Modes: cfg.Modes, Values: map[string]map[string][]float64{}, Failed: map[string]string{}}
	var modes []Mode
	for _, name := range cfg.Modes {
		m := modeOf(name, &cfg)
		cfg.logf("prepare %s", name)
		if err := m.Prepare(ctx, dir); err != nil {
			rep.Failed[name] = err.Error()
			continue
		}
		modes = append(modes, m)
	}
	for round := range cfg.Rounds {
		for i := range modes {
			m := modes[(i+round)%len(modes)] // nobody is always first
			if rep.Failed[m.Name()] != "" {
				continue
			}
			for _, g := range groups(cfg.Scenarios) {
				if ctx.Err() != nil {
					rep.Conditions.Cut = true
					return rep, nil
				}
				cfg.logf("round %d/%d %s: %s", round+1, cfg.Rounds, m.Name(), strings.Join(g.scenarios, " "))
				if err := measure(ctx, &cfg, m, g, rep); err != nil && ctx.Err() == nil {
					rep.Failed[m.Name()] = fmt.Sprintf("round %d: %v", round+1, err)
					cfg.logf("%s failed: %v", m.Name(), err)
					break
				}
			}
		}
	}
	return rep, nil
}

// measure builds the namespaces and the mode, runs the scenarios, and removes
// everything again.
func measure(ctx context.Context, cfg *Config, m Mode, g group, rep *Report) (err error) {
	// No scenario takes longer than this without something being stuck.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(len(g.scenarios))*(15*cfg.secs()+2*time.Minute))
	defer cancel()
	n, err := newNet3(g.setting.mtu, g.setting.offloads)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	p, err := m.Up(ctx, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	r := &runner{cfg: cfg, net: n, path: p, add: func(metric string, v float64) { rep.add(m.Name(), metric, v) }}
	return r.run(ctx, g.scenarios)
}

// conditions notes what the figures depend on.
func conditions(cfg *Config) Conditions {
	c := Conditions{Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), Go: runtime.Version(), Cores: runtime.NumCPU(),
		Rounds: cfg.Rounds, Secs: cfg.Secs, Congestion: congestion, Scenarios: cfg.Scenarios}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		c.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				c.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		c.Load, _, _ = strings.Cut(string(b), " ")
	}
	return c
}
