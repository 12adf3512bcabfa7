package clock

import (
	"testing"
	"time"
)

// TestSystemMonoNeverGoesBack and moves with the wall clock.
func TestSystemMonoNeverGoesBack(t *testing.T) {
	c := System()
	last, wall := c.Mono(), c.Wall()
	for range 10_000 {
		now := c.Mono()
		if now < last {
			t.Fatalf("went back from %d to %d", last, now)
		}
		last = now
	}
	if d := c.Wall().Sub(wall); d < 0 || d > time.Minute {
		t.Errorf("wall clock moved by %v", d)
	}
}

// TestFakeMovesOnlyWhenTold, and a step of the wall clock leaves timers alone.
func TestFakeMovesOnlyWhenTold(t *testing.T) {
	f := NewFake()
	m, w := f.Mono(), f.Wall()
	f.Advance(90 * time.Second)
	if got := f.Mono().Sub(m); got != 90*time.Second {
		t.Errorf("moved by %v", got)
	}
	if f.Mono() != m.Add(90*time.Second) {
		t.Error("Add and Sub disagree")
	}
	f.StepWall(-time.Hour)
	if got := f.Wall().Sub(w); got != 90*time.Second-time.Hour {
		t.Errorf("wall clock moved by %v", got)
	}
	if got := f.Mono().Sub(m); got != 90*time.Second {
		t.Errorf("a step of the wall clock moved timers by %v", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("time went back")
		}
	}()
	f.Advance(-1)
}

func BenchmarkSystemMono(b *testing.B) {
	c := System()
	b.ReportAllocs()
	for b.Loop() {
		c.Mono()
	}
}
