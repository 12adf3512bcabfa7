// Package demo shows spillway's main job on one machine: it builds a provider
// network, a host with tasks and a private subnet with real servers out of
// network namespaces, runs spillway in them as an operator would, and checks
// everything it says.
package demo

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Check is one thing that was shown, or was not.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Report is the outcome of the demo: OK only if every check was.
type Report struct {
	OK      bool    `json:"ok"`
	Checks  []Check `json:"checks"`
	Seconds float64 `json:"seconds"`
}

// narrator tells what happens as it happens, and keeps the checks.
type narrator struct {
	out   io.Writer // nil: silent
	begun time.Time

	mu     sync.Mutex
	checks []Check // guarded by mu
}

func (n *narrator) say(format string, a ...any) {
	if n.out != nil {
		fmt.Fprintf(n.out, "\n%s\n", fmt.Sprintf(format, a...))
	}
}

// check notes the outcome of one check. err nil means that it held.
func (n *narrator) check(name string, err error, format string, a ...any) {
	c := Check{Name: name, OK: err == nil, Detail: fmt.Sprintf(format, a...)}
	mark := "ok  "
	if err != nil {
		mark = "FAIL"
		c.Detail = err.Error()
	}
	n.mu.Lock()
	n.checks = append(n.checks, c)
	n.mu.Unlock()
	if n.out != nil {
		fmt.Fprintf(n.out, "  %s  %-34s %s\n", mark, c.Name, c.Detail)
	}
}

func (n *narrator) report() Report {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := Report{OK: len(n.checks) > 0, Checks: n.checks, Seconds: time.Since(n.begun).Seconds()}
	for _, c := range n.checks {
		r.OK = r.OK && c.OK
	}
	return r
}
