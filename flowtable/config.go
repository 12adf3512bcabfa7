package flowtable

import (
	"fmt"
	"time"
)

// Mode says how strictly TCP sequence numbers are checked.
type Mode uint8

// The modes.
const (
	// Strict drops segments outside the tracked window. A TCP flow starts with
	// a SYN, until Config.LoosePickup also with a segment from mid-stream.
	Strict Mode = iota
	// Liberal tracks the window but drops nothing because of it, and a TCP
	// flow may start with any segment of the task but a RST.
	Liberal
)

// Timeouts are the idle times after which a flow ends. A field that is 0 has
// its default. Times are kept in ticks of 250 ms and never end early.
type Timeouts struct {
	// Established TCP. Default 7,440 s (RFC 5382 REQ-5), 60 s to 432,000 s.
	Established time.Duration
	// HalfOpen is a TCP handshake that is not complete. Default 240 s; 1 s to
	// 432,000 s.
	HalfOpen time.Duration
	// HalfClosed is a TCP flow with one or two FINs that is not finished, and
	// one that was revived after a RST. Traffic refreshes it: the open
	// direction of a half-closed flow may be used for hours. Default 240 s;
	// 1 s to 432,000 s.
	HalfClosed time.Duration
	// UDP that was answered. Default 300 s; at least 120 s (RFC 4787 REQ-5).
	UDP time.Duration
	// UDPOneWay is UDP without an answer. Default 120 s; at least 120 s.
	UDPOneWay time.Duration
	// DNS is UDP to port 53 after an answer. Default 10 s; at least 1 s.
	DNS time.Duration
	// ICMP is an echo request and its answers. Default 60 s, at least 60 s
	// (RFC 5508 REQ-2).
	ICMP time.Duration
	// HoldClient is how long the reply tuple of a TCP flow that the task
	// closed first is kept from other tasks. Default 2 s; at least 1 s.
	HoldClient time.Duration
	// HoldServer is the same after a close that the server started, and after
	// a RST. Default 60 s; at least 1 s.
	HoldServer time.Duration
}

const maxTimeout = 432000 * time.Second

func (t *Timeouts) fill() error {
	for _, f := range []struct {
		name     string
		v        *time.Duration
		def, min time.Duration
	}{
		{"Established", &t.Established, 7440 * time.Second, 60 * time.Second},
		{"HalfOpen", &t.HalfOpen, 240 * time.Second, time.Second},
		{"HalfClosed", &t.HalfClosed, 240 * time.Second, time.Second},
		{"UDP", &t.UDP, 300 * time.Second, 120 * time.Second},
		{"UDPOneWay", &t.UDPOneWay, 120 * time.Second, 120 * time.Second},
		{"DNS", &t.DNS, 10 * time.Second, time.Second},
		{"ICMP", &t.ICMP, 60 * time.Second, 60 * time.Second},
		{"HoldClient", &t.HoldClient, 2 * time.Second, time.Second},
		{"HoldServer", &t.HoldServer, 60 * time.Second, time.Second},
	} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v < f.min || *f.v > maxTimeout {
			return fmt.Errorf("flowtable: timeout %s is %v: must be %v to %v", f.name, *f.v, f.min, maxTimeout)
		}
	}
	return nil
}

// Config describes a table. The zero Config is a table of 262,144 flows in
// anonymous memory.
type Config struct {
	// Path is the file that holds the table, made with mode 0600 if it does
	// not exist. It should lie on a tmpfs: see CheckDir. Empty means anonymous
	// memory. Files are for Linux only.
	Path string
	// MaxFlows is the number of entries. Default 262,144; at most 2^30. A file
	// is opened only with the MaxFlows it was made for.
	MaxFlows int
	// MaxFlowsPerTask is the largest number of flows of one task, finished
	// ones in their hold included. Default half of MaxFlows.
	MaxFlowsPerTask int
	// MaxHalfOpen is the largest number of TCP handshakes under way. Default
	// half of MaxFlows.
	MaxHalfOpen int
	// MaxHalfOpenPerTask is the same for one task. At this cap the oldest
	// half-open flow of the same task makes room; other tasks never do.
	// Default 4,096, but not more than MaxFlowsPerTask.
	MaxHalfOpenPerTask int
	Timeouts           Timeouts
	// Mode is how strictly TCP is checked. Default Strict.
	Mode Mode
	// LoosePickup is the time until which a TCP flow may start with a segment
	// from mid-stream, as after a loss of state. Such a flow is checked
	// liberally for its life. The zero time means never.
	LoosePickup Mono
	// Secret seeds the keyed hash of a new table. All zero means random. An
	// existing file keeps its own.
	Secret [32]byte
	// OnRemove, if not nil, is called once for every flow that leaves the
	// table, after nobody can find it any more and before its entry is used
	// again. It runs in the goroutine that removed the flow, without locks
	// held, and must not keep the Entry. Flows that Open drops are not told.
	OnRemove func(*Entry)
}

const (
	defaultMaxFlows    = 1 << 18
	maxMaxFlows        = 1 << 30
	defaultMaxHalfOpen = 4096
)

func (c *Config) fill() error {
	if c.MaxFlows == 0 {
		c.MaxFlows = defaultMaxFlows
	}
	if c.MaxFlows < 1 || c.MaxFlows > maxMaxFlows {
		return fmt.Errorf("flowtable: MaxFlows is %d: must be 1 to %d", c.MaxFlows, maxMaxFlows)
	}
	if c.MaxFlowsPerTask == 0 {
		c.MaxFlowsPerTask = max(c.MaxFlows/2, 1)
	}
	if c.MaxHalfOpen == 0 {
		c.MaxHalfOpen = max(c.MaxFlows/2, 1)
	}
	if c.MaxHalfOpenPerTask == 0 {
		c.MaxHalfOpenPerTask = min(defaultMaxHalfOpen, c.MaxFlowsPerTask)
	}
	if c.MaxFlowsPerTask < 1 || c.MaxHalfOpen < 1 || c.MaxHalfOpenPerTask < 1 {
		return fmt.Errorf("flowtable: caps must be at least 1: MaxFlowsPerTask %d, MaxHalfOpen %d, MaxHalfOpenPerTask %d",
			c.MaxFlowsPerTask, c.MaxHalfOpen, c.MaxHalfOpenPerTask)
	}
	if c.Mode > Liberal {
		return fmt.Errorf("flowtable: Mode is %d: must be Strict or Liberal", c.Mode)
	}
	return c.Timeouts.fill()
}
