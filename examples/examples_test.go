//go:build netns && linux

// Package examples_test runs every example as a user would.
package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestExamplesRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the examples need root: run `make netns`")
	}
	exe := filepath.Join(t.TempDir(), "spillway")
	build := exec.Command("go", "build", "-trimpath", "-o", exe, "../cmd/spillway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build spillway: %v\n%s", err, out)
	}
	scripts, err := filepath.Glob("*/run.sh")
	if err != nil || len(scripts) < 2 {
		t.Fatalf("found %d examples (%v), want at least 2", len(scripts), err)
	}
	for _, script := range scripts {
		t.Run(filepath.Dir(script), func(t *testing.T) {
			cmd := exec.Command("./" + script)
			cmd.Env = append(os.Environ(), "SPILLWAY="+exe)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", script, err, out)
			}
			t.Logf("%s", out)
		})
	}
}
