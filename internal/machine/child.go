package machine

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
)

// Restart delays of a child: the first restart is at once, then they grow.
const (
	restartMin   = 100 * time.Millisecond
	restartMax   = 5 * time.Second
	restartReset = 30 * time.Second // a child that lived so long starts afresh
)

// child is one role in a process of its own.
type child struct {
	// Immutable.
	role   engine.Role
	cfg    UpConfig
	socket string
	client *api.Client
	log    *slog.Logger
	poked  chan struct{}

	mu     sync.Mutex
	proc   *os.Process // guarded by mu; nil while it is down
	starts int         // guarded by mu
	stamp  api.Stamp   // guarded by mu; what it took last
}

func newChild(role engine.Role, cfg UpConfig, socket string) *child {
	cl, err := api.NewClient("unix://" + socket)
	if err != nil {
		panic("machine: " + err.Error()) // the path is ours and absolute
	}
	return &child{role: role, cfg: cfg, socket: socket, client: cl, log: cfg.Logger.With("role", role), poked: make(chan struct{}, 1)}
}

// run keeps the child running until ctx ends.
func (c *child) run(ctx context.Context) {
	delay := time.Duration(0)
	for ctx.Err() == nil {
		begun := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > restartReset {
			delay = 0
		}
		c.log.Error("role ended", "err", err, "restart_in", delay)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(max(2*delay, restartMin), restartMax)
	}
}

// once runs the child until it ends. When ctx ends it is asked to end, and
// killed if it does not.
func (c *child) once(ctx context.Context) error {
	// The kernel signals the child when the thread that started it ends
	// (PR_SET_PDEATHSIG): that thread must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, c.cfg.Exe, append([]string{string(c.role), "--config", c.cfg.Path}, c.cfg.ChildArgs...)...)
	cmd.Stderr = os.Stderr
	cmd.Env = c.cfg.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	c.mu.Lock()
	c.proc = cmd.Process
	c.starts++
	c.mu.Unlock()
	c.poke()
	err := cmd.Wait()
	c.mu.Lock()
	c.proc, c.stamp = nil, api.Stamp{}
	c.mu.Unlock()
	return err
}

// poke makes push tell the child the snapshot now.
func (c *child) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

func (c *child) applied(s api.Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stamp = s
}

// up reports whether the child has answered since it was started.
func (c *child) up() bool {
	if c.pid() == 0 {
		return false
	}
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (c *child) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		return 0
	}
	return c.proc.Pid
}

func (c *child) restarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.starts-1, 0)
}

// proxy passes requests on to the child's own API.
func (c *child) proxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "spillway"}) },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.socket)
		}},
		FlushInterval: -1, // flows --follow is a stream
		ErrorLog:      slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			writeJSON(w, http.StatusServiceUnavailable, &api.Error{
				Message: "the " + string(c.role) + " role does not answer just now (" + err.Error() + "): see `spillway status`"})
		},
	}
}
