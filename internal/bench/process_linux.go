package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/hostnet"
)

// command is a program to run in a namespace.
type command struct {
	path  string
	args  []string
	env   []string // added to the bench's own
	stdin string
}

// process is a program that the bench started. It is ended by its own id.
type process struct {
	name string
	cmd  *exec.Cmd
	out  safeBuffer // standard output
	errs safeBuffer // standard error
	done chan struct{}
	err  error // valid once done is closed
}

// maxOutput bounds what is kept of a program's output.
const maxOutput = 4 << 20

// safeBuffer keeps the first maxOutput bytes and may be read while written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if room := maxOutput - s.b.Len(); room > 0 {
		s.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a program inside ns.
func start(ns *hostnet.NS, c command) (*process, error) {
	p := &process{name: filepath.Base(c.path), cmd: exec.Command(c.path, c.args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	p.cmd.Env = append(os.Environ(), c.env...)
	if c.stdin != "" {
		p.cmd.Stdin = strings.NewReader(c.stdin)
	}
	// A group of its own: a Ctrl-C in the terminal is for the bench, which
	// then ends what it started in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = time.Second
	if err := ns.Do(p.cmd.Start); err != nil { // the child gets the thread's namespace
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// wait waits for the program to end and returns its output. When ctx ends
// first, the program is stopped.
func (p *process) wait(ctx context.Context) (string, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.stop()
		return "", fmt.Errorf("%s: %w", p.name, ctx.Err())
	}
	if p.err != nil {
		return p.out.String(), fmt.Errorf("%s: %w: %s", p.name, p.err, tail(p.errs.String()+p.out.String()))
	}
	return p.out.String(), nil
}

// stop ends the program: politely, and after three seconds not.
func (p *process) stop() {
	p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(3 * time.Second):
	}
	p.cmd.Process.Kill()
	<-p.done
}

// alive returns an error if the program has ended, with its last words.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %v: %s", p.name, p.err, tail(p.errs.String()))
	default:
		return nil
	}
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 2000 {
		s = "… " + s[len(s)-2000:]
	}
	return s
}

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which Linux
// has fixed at 100 for programs.
const clockTick = 10 * time.Millisecond

// cpuTime is what the processes have used so far, user and system.
func cpuTime(pids []int) (time.Duration, error) {
	total := time.Duration(0)
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		// The name in parentheses may hold anything; fields count behind it.
		i := bytes.LastIndexByte(b, ')')
		f := strings.Fields(string(b[i+1:]))
		if len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
		}
		for _, s := range f[11:13] { // utime, stime: fields 14 and 15 of proc(5)
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * clockTick
		}
	}
	return total, nil
}

// machineBusy is how long all cores together have not been idle since boot.
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	total := time.Duration(0)
	for i, s := range strings.Fields(line) {
		// cpu user nice system idle iowait irq softirq steal; guest is in user
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(n) * clockTick
	}
	return total, nil
}

// resetPeaks starts the count of peak memory anew.
func resetPeaks(pids []int) error {
	var errs []error
	for _, pid := range pids {
		errs = append(errs, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0))
	}
	return errors.Join(errs...)
}

// peakMemory is the largest peak of resident memory of one of the processes
// in bytes, without shared pages of a tmpfs: those are mapped tables whose
// size is chosen and does not depend on load.
func peakMemory(pids []int) (int64, error) {
	most := int64(0)
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		most = max(most, statusKB(string(b), "VmHWM")-statusKB(string(b), "RssShmem"))
	}
	return most * 1024, nil
}

func statusKB(status, key string) int64 {
	for line := range strings.SplitSeq(status, "\n") {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return n
		}
	}
	return 0
}

// waitFor calls ready until it returns nil, for at most ten seconds.
func waitFor(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
