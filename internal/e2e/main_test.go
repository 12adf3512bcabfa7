//go:build netns && linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fe919326/spillway/internal/lab/netlab"
)

// binary is the spillway under test; dir is where everything of this run is
// kept: on a tmpfs, so that flow tables may lie there, and short, so that the
// paths of sockets fit. Both are set once by TestMain.
var binary, dir string

func TestMain(m *testing.M) {
	netlab.Reexec()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	parent := "/dev/shm"
	if st, err := os.Stat(parent); err != nil || !st.IsDir() {
		parent = os.TempDir()
	}
	var err error
	if dir, err = os.MkdirTemp(parent, "sw-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary = os.Getenv("SPILLWAY_BIN"); binary == "" {
		binary = filepath.Join(dir, "spillway")
		if err := build(binary, "github.com/fe919326/spillway/cmd/spillway"); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
	}
	return m.Run()
}

// build compiles a main package.
func build(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, b)
	}
	return nil
}
