package bench

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be its own load, as the bench command is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == LoadVerb {
		os.Exit(LoadMain(context.Background(), os.Args[2:]))
	}
	os.Exit(m.Run())
}

func TestConfigCheck(t *testing.T) {
	c := Config{Self: "x", Nebula: "n", Spillway: "s"}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	if c.Rounds != 3 || c.Secs != 3 || len(c.Modes) != 5 || !slices.Equal(c.Scenarios, Scenarios()) {
		t.Errorf("defaults %+v", c)
	}
	for wrong, c := range map[string]Config{
		"Self":                  {},
		"rounds":                {Self: "x", Rounds: -1},
		`no mode "wg"`:          {Self: "x", Modes: []string{"wg"}},
		`no scenario "x"`:       {Self: "x", Scenarios: []string{"x"}},
		"needs the path of a n": {Self: "x", Modes: []string{ModeNebulaChaCha}},
		"needs the path of a s": {Self: "x", Modes: []string{ModeSpillway}},
	} {
		if err := c.check(); err == nil || !strings.Contains(err.Error(), wrong) {
			t.Errorf("error %v, want one with %q", err, wrong)
		}
	}
}

func TestGroupsShareNamespaces(t *testing.T) {
	got := groups([]string{ScenarioJumbo, ScenarioLatency, ScenarioNoOffl, ScenarioBulk})
	if len(got) != 3 || !slices.Equal(got[0].scenarios, []string{ScenarioBulk, ScenarioLatency}) ||
		got[1].setting.offloads || got[2].setting.mtu != 9000 {
		t.Errorf("groups %+v", got)
	}
}

func TestOwnProcessFigures(t *testing.T) {
	me := []int{os.Getpid()}
	before, err := cpuTime(me)
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; { // work
	}
	after, err := cpuTime(me)
	if err != nil || after <= before {
		t.Errorf("CPU time %v, then %v (%v)", before, after, err)
	}
	busy, err := machineBusy()
	if err != nil || busy < after {
		t.Errorf("the machine was busy for %v, this process alone for %v (%v)", busy, after, err)
	}
	if err := resetPeaks(me); err != nil {
		t.Fatal(err)
	}
	low, err := peakMemory(me)
	if err != nil || low < 1<<20 {
		t.Fatalf("peak %d, %v", low, err)
	}
	b := make([]byte, 64<<20)
	for i := range b {
		b[i] = byte(i)
	}
	high, err := peakMemory(me)
	if err != nil || high < low+32<<20 {
		t.Errorf("peak %d after %d: 64 MB more were in use (%v, %d)", high, low, err, b[5])
	}
	if _, err := cpuTime([]int{-1}); err == nil {
		t.Error("figures of a process that does not exist")
	}
}

func TestLoadRefusesNonsense(t *testing.T) {
	for _, args := range [][]string{nil, {"nothing"}, {"send", "-x"}} {
		if err := Load(t.Context(), args, os.Stderr); err == nil {
			t.Errorf("Load(%q) worked", args)
		}
	}
}
