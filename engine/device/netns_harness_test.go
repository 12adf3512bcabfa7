//go:build netns && linux

package device

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// space is a network namespace of a test's own. Its thread lives until the end
// of the test and runs what must happen in it.
type space struct {
	t    testing.TB
	work chan func()
	tid  int
	done chan struct{}
}

// newSpace makes a fresh namespace with loopback up.
func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(s.done)
		// Never unlocked: the thread, and the namespace with it, ends with
		// this goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		s.tid = unix.Gettid()
		ready <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("a new network namespace (are you root?): %v", err)
	}
	t.Cleanup(s.leave)
	s.ip("link set lo up")
	return s
}

// leave ends the thread.
func (s *space) leave() {
	select {
	case <-s.done:
	default:
		close(s.work)
		<-s.done
	}
}

// do runs f on the namespace's thread.
func (s *space) do(f func()) {
	ended := make(chan struct{})
	s.work <- func() {
		defer close(ended)
		f()
	}
	<-ended
}

// ip runs ip(8) in the namespace.
func (s *space) ip(args string) {
	s.t.Helper()
	var out []byte
	var err error
	s.do(func() { out, err = exec.Command("ip", strings.Fields(args)...).CombinedOutput() })
	if err != nil {
		s.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// open opens a TUN in the namespace.
func (s *space) open(c TUNConfig) (*TUN, error) {
	var tun *TUN
	var err error
	s.do(func() { tun, err = OpenTUN(c) })
	return tun, err
}

// tun opens a TUN and gives it addresses 10.9.0.host/24 and fd09::host/64.
func (s *space) tun(c TUNConfig, host int) *TUN {
	s.t.Helper()
	tun, err := s.open(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { tun.Close() })
	s.address(tun.Name(), host)
	return tun
}

func (s *space) address(name string, host int) {
	s.t.Helper()
	s.ip(fmt.Sprintf("addr add 10.9.0.%d/24 dev %s", host, name))
	s.ip(fmt.Sprintf("addr add fd09::%d/64 dev %s nodad", host, name))
	s.ip("link set " + name + " up mtu 1500")
	// The kernel takes packets to an IPv6 address only once a worker of its own
	// has made the local route, nodad or not.
	eventually(s.t, "the local IPv6 route", func() bool {
		var out []byte
		s.do(func() { out, _ = exec.Command("ip", "-6", "route", "show", "table", "local").Output() })
		return strings.Contains(string(out), fmt.Sprintf("local fd09::%d ", host))
	})
}
