package hostnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// NS is an open network namespace. It stays alive while the NS is open, even
// when no process and no mount holds it. Its methods are safe for concurrent
// use, except Close.
type NS struct {
	f    *os.File
	path string // where it was found or bound; "" for an anonymous one
}

// CurrentNS opens the network namespace of the calling OS thread.
func CurrentNS() (*NS, error) { return OpenNS("/proc/thread-self/ns/net") }

// OpenPID opens the network namespace of a process. The process may end
// afterwards: the NS stays valid.
func OpenPID(pid int) (*NS, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("open namespace of process %d: not a process id", pid)
	}
	return OpenNS(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// OpenNS opens a network namespace by path: /proc/PID/ns/net, /run/netns/NAME,
// or any file that CreateNS bound. A path that is no network namespace is an
// error.
func OpenNS(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	// NS_GET_NSTYPE answers on namespace files only (ioctl_ns(2)).
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s is not a network namespace", path)
	}
	return &NS{f: f, path: path}, nil
}

// NewNS creates an anonymous network namespace with loopback up. It goes away
// with the last process, mount and open NS that holds it.
func NewNS() (*NS, error) {
	var n *NS
	err := onThread(func() (bool, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return false, fmt.Errorf("create network namespace: %w", err)
		}
		var err error
		n, err = CurrentNS()
		return false, err // the thread is in the new namespace for good: throw it away
	})
	if err != nil {
		return nil, err
	}
	n.path = ""
	if err := n.loopbackUp(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// CreateNS creates a network namespace with loopback up and binds it to path,
// whose directory is made (0755) when missing. Tools such as nsenter and
// "ip netns" (for paths under /run/netns) can use the path. DeleteNS undoes it.
func CreateNS(path string) (*NS, error) {
	n, err := NewNS()
	if err != nil {
		return nil, err
	}
	if err := n.Bind(path); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Bind mounts the namespace on path, so that it outlives this process. An
// existing file at path is an error: it may be another namespace.
func (n *NS) Bind(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	f.Close()
	src := fmt.Sprintf("/proc/self/fd/%d", n.FD())
	if err := unix.Mount(src, path, "none", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	n.path = path
	return nil
}

// DeleteNS unmounts and removes a path made by CreateNS or Bind. A path that
// does not exist is no error.
func DeleteNS(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Path is where the namespace was opened or bound; "" for an anonymous one.
func (n *NS) Path() string { return n.path }

// FD is the file descriptor. borrowed: valid until Close.
func (n *NS) FD() int { return int(n.f.Fd()) }

// Close lets go of the namespace. It does not delete a bound path.
func (n *NS) Close() error { return n.f.Close() }

// Same reports whether both are the same namespace.
func (n *NS) Same(o *NS) bool {
	var a, b unix.Stat_t
	if unix.Fstat(n.FD(), &a) != nil || unix.Fstat(o.FD(), &b) != nil {
		return false
	}
	return a.Dev == b.Dev && a.Ino == b.Ino
}

// errLeft is returned by Do when its function ended the goroutine.
var errLeft = errors.New("function left by runtime.Goexit")

// Do runs fn on an OS thread of its own that is in the namespace. Sockets and
// TUN devices opened by fn belong to the namespace and may be used anywhere
// afterwards. fn must not start goroutines that count on the namespace: they
// run on other threads. When the thread cannot be moved back it is thrown
// away, so that no other goroutine ever finds itself in the wrong namespace.
func (n *NS) Do(fn func() error) error {
	return onThread(func() (bool, error) {
		back, err := os.OpenFile("/proc/thread-self/ns/net", os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return true, fmt.Errorf("open own network namespace: %w", err)
		}
		defer back.Close()
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter network namespace %s: %w", n.path, err)
		}
		err = fn()
		clean := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil
		return clean, err
	})
}

// onThread runs fn in a goroutine locked to its OS thread, and waits. fn says
// whether the thread may be used again. The process's first thread is never
// used: /proc/self shows its namespaces, and it cannot be thrown away.
func onThread(fn func() (clean bool, err error)) error {
	err := errLeft
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold the first thread while another goroutine, which then must
			// get another thread, does the work.
			err = onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		var clean bool
		if clean, err = fn(); clean {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	return err
}

func (n *NS) loopbackUp() error {
	c, err := n.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.SetUp("lo")
}
