// Package clock is the one place where spillway reads time.
//
// Every part of the engine takes a Clock, so that a test can travel in time
// and so that a jump of the wall clock never expires a flow: timers use Mono,
// which counts through suspend (CLOCK_BOOTTIME, clock_gettime(2)), and only
// logs use Wall.
package clock

import (
	"sync"
	"time"
)

// Mono is a point in time in nanoseconds since the machine booted, suspend
// included. It never goes back and is comparable between processes of one
// boot. The zero Mono is the boot itself.
type Mono int64

// Add returns m moved by d.
func (m Mono) Add(d time.Duration) Mono { return m + Mono(d) }

// Sub returns the time from o to m.
func (m Mono) Sub(o Mono) time.Duration { return time.Duration(m - o) }

// Clock tells the time. Implementations are safe for concurrent use.
type Clock interface {
	// Mono is the time for timers.
	Mono() Mono
	// Wall is the time for people: logs and records. It may jump.
	Wall() time.Time
}

// System is the machine's clock.
func System() Clock { return system{} }

type system struct{}

func (system) Wall() time.Time { return time.Now() }

// Fake is a clock that moves only when told to. The zero Fake is not usable:
// call NewFake.
type Fake struct {
	mu   sync.Mutex
	mono Mono      // guarded by mu
	wall time.Time // guarded by mu
}

// NewFake returns a clock that stands at one hour after boot, 2026-01-01 UTC.
func NewFake() *Fake {
	return &Fake{mono: Mono(time.Hour), wall: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// Mono implements Clock.
func (f *Fake) Mono() Mono {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mono
}

// Wall implements Clock.
func (f *Fake) Wall() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wall
}

// Advance moves both times forward by d, which must not be negative.
func (f *Fake) Advance(d time.Duration) {
	if d < 0 {
		panic("clock.Fake: Advance by a negative duration")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mono = f.mono.Add(d)
	f.wall = f.wall.Add(d)
}

// StepWall moves only the wall clock, as an operator or NTP would. d may be
// negative.
func (f *Fake) StepWall(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.wall.Add(d)
}
