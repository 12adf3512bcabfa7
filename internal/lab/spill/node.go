package spill

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/tunnel"
)

// Node is a spillway machine: `spillway up` in a box, driven by its command
// line as an operator would.
type Node struct {
	Name string
	Dir  string      // holds its configuration, state, sockets and log
	Box  *netlab.Box // where it runs
	// Patience is how long Start waits until the machine is ready; default
	// 15 s.
	Patience time.Duration

	exe  string
	cmd  *exec.Cmd
	done chan struct{}
}

// NewNode prepares a machine called name; Start starts it.
func NewNode(exe, dir, name string, box *netlab.Box) (*Node, error) {
	n := &Node{Name: name, Dir: filepath.Join(dir, name), Box: box, exe: exe}
	return n, os.MkdirAll(n.Dir, 0o700)
}

// Key makes the machine's WireGuard key for a role and returns the public one.
func (n *Node) Key(role string) (string, error) {
	keys := filepath.Join(n.Dir, "state", "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return "", err
	}
	key, err := tunnel.LoadOrCreateKey(filepath.Join(keys, role+".key"))
	if err != nil {
		return "", err
	}
	return key.Public().String(), nil
}

// Configure writes the machine's configuration: where things lie, then rest.
func (n *Node) Configure(rest string) error {
	text := fmt.Sprintf("machine: %s\nstate_dir: %s/state\nrun_dir: %s/run\n%s", n.Name, n.Dir, n.Dir, rest)
	return os.WriteFile(n.Config(), []byte(text), 0o600)
}

// Config is the path of the machine's configuration.
func (n *Node) Config() string { return filepath.Join(n.Dir, "spillway.yaml") }

// Started says whether Start was called and the machine was not stopped since.
func (n *Node) Started() bool {
	if n.done == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// API is the address of the machine's API.
func (n *Node) API() string { return "unix://" + n.Dir + "/run/api.sock" }

// FlowLog is where the configuration should put the flow log.
func (n *Node) FlowLog() string { return filepath.Join(n.Dir, "flow.log") }

// Start starts the machine and waits until it is ready.
func (n *Node) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(n.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(n.exe, "up", "--config", n.Config())
	n.cmd.Stderr = log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.Box.Do(n.cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.done = make(chan struct{})
	go func() {
		defer close(n.done)
		_ = n.cmd.Wait() // how it ended is in its log
	}()
	if _, err := n.Run(ctx, "status", "--wait", "--timeout", cmp.Or(n.Patience, 15*time.Second).String()); err != nil {
		return fmt.Errorf("%s does not get ready: %w\n%s", n.Name, err, n.LogTail())
	}
	return nil
}

// Run runs a verb against the machine and returns what it prints.
func (n *Node) Run(ctx context.Context, verb ...string) ([]byte, error) {
	// Flags go before arguments, behind the verb and its sub-verb.
	at := 1
	if len(verb) > 1 && !strings.HasPrefix(verb[1], "-") && (verb[0] == "task" || verb[0] == "endpoint") {
		at = 2
	}
	args := append(append(append([]string{}, verb[:at]...), "--api", n.API()), verb[at:]...)
	cmd := exec.CommandContext(ctx, n.exe, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("spillway %s: %w: %s", strings.Join(verb, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// Query runs a verb with --json and reads its answer into v.
func (n *Node) Query(ctx context.Context, v any, verb ...string) error {
	out, err := n.Run(ctx, append(verb, "--json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, v)
}

// Role tells how a role of the machine is.
func (n *Node) Role(ctx context.Context, role string) (api.Status, error) {
	var st []api.Status
	if err := n.Query(ctx, &st, "status"); err != nil {
		return api.Status{}, err
	}
	for _, s := range st {
		if s.Role == role {
			return s, nil
		}
	}
	return api.Status{}, fmt.Errorf("%s has no role %s: %+v", n.Name, role, st)
}

// PIDs are the machine's processes: the supervisor and its roles.
func (n *Node) PIDs(ctx context.Context) ([]int, error) {
	var st []api.Status
	if err := n.Query(ctx, &st, "status"); err != nil {
		return nil, err
	}
	pids := []int{n.cmd.Process.Pid}
	for _, s := range st {
		if s.PID != 0 {
			pids = append(pids, s.PID)
		}
	}
	return pids, nil
}

// Kill ends the machine's processes without giving them a moment.
func (n *Node) Kill(ctx context.Context) error {
	pids, err := n.PIDs(ctx)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	<-n.done
	return nil
}

// Stop ends the machine as an operator would, and waits.
func (n *Node) Stop() error {
	if n.cmd == nil || n.cmd.Process == nil {
		return nil
	}
	select {
	case <-n.done:
		return nil
	default:
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.done:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("%s did not end within 10 s", n.Name), n.cmd.Process.Kill())
	}
}

// LogTail is the end of the machine's log, for people.
func (n *Node) LogTail() string {
	b, err := os.ReadFile(filepath.Join(n.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return string(b)
}
