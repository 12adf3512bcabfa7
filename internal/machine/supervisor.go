// Package machine runs spillway's roles on one machine: a supervisor that
// keeps the API's door open and runs one child process per role, and the roles
// themselves, which join the engine to the kernel's network.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/config"
)

// pushEvery is how often each role is told the whole snapshot again, changed
// or not: what got lost on the way is mended without anybody asking.
const pushEvery = 10 * time.Second

// UpConfig is what Up needs.
type UpConfig struct {
	Path   string // of the configuration
	Exe    string // the spillway binary
	Logger *slog.Logger
	// ChildArgs go to every child behind its verb and --config.
	ChildArgs []string
	// Env is the environment of the children, and so of claim programs.
	Env []string
	// Reload makes the supervisor read its configuration again, as the verb
	// reload does. Default nil: never.
	Reload <-chan os.Signal
}

// Supervisor runs the roles that a configuration names.
type Supervisor struct {
	cfg UpConfig
	log *slog.Logger

	mu       sync.Mutex
	file     *config.File  // guarded by mu
	snapshot *api.Snapshot // guarded by mu
	warnings []string      // guarded by mu
	children []*child      // immutable after Up began
	clients  *clients
}

// Up runs every role that the configuration names until ctx ends.
func Up(ctx context.Context, cfg UpConfig) error {
	s := &Supervisor{cfg: cfg, log: cfg.Logger}
	file, err := config.Load(cfg.Path)
	if err != nil {
		return err
	}
	if err := notYet(file, s.log); err != nil {
		return err
	}
	if err := privileged(); err != nil {
		return err
	}
	if err := makeDirs(file); err != nil {
		return err
	}
	if s.clients, err = openClients(filepath.Join(file.StateDir, "clients.json")); err != nil {
		return err
	}
	s.file = file
	roles := supervised(file)
	if len(roles) == 0 {
		return fmt.Errorf("%s names no role that this machine could run: give it subnets (egress) or services (host)", cfg.Path)
	}
	for _, role := range roles {
		if _, err := machineKey(file.StateDir, role); err != nil {
			return err
		}
		s.children = append(s.children, newChild(role, cfg, rolePath(file.RunDir, role)))
	}
	if err := s.rebuild(file); err != nil {
		return err
	}
	l, err := listenUnix(file.Listen.API)
	if err != nil {
		return err
	}
	defer os.Remove(file.Listen.API)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, c := range s.children {
		wg.Add(2)
		go func() { defer wg.Done(); c.run(ctx) }()
		go func() { defer wg.Done(); s.push(ctx, c) }()
	}
	wg.Add(1)
	go func() { defer wg.Done(); s.reloads(ctx) }()
	return serve(ctx, l, s.routes(), s.log)
}

// notYet refuses what the configuration may say but this version cannot do,
// where silence would leave an operator in error, and warns of the rest.
func notYet(f *config.File, log *slog.Logger) error {
	switch {
	case f.Store != "" && f.Store != "embedded":
		return fmt.Errorf("%s: store: %s: this version keeps its state in files only: use store: embedded", f.Path, f.Store)
	case f.Control.Address != "":
		return fmt.Errorf("%s: control: this version cannot join a control machine: list the machines under machines: instead", f.Path)
	}
	for name, addr := range map[string]netip.AddrPort{
		"metrics": f.Listen.Metrics, "api_tls": f.Listen.APITLS, "apprunner": f.Listen.AppRunner,
	} {
		if addr.IsValid() {
			log.Warn("this version does not listen there yet", "listen", name, "address", addr)
		}
	}
	return nil
}

// supervised is the roles of file that run as children. Control is not among
// them: the file itself says what control would.
func supervised(f *config.File) []engine.Role {
	var out []engine.Role
	for _, r := range f.Roles() {
		switch r {
		case config.RoleEgress:
			out = append(out, engine.RoleEgress)
		case config.RoleHost:
			out = append(out, engine.RoleHost)
		}
	}
	return out
}

// rolePath is the socket of a role's own API.
func rolePath(runDir string, role engine.Role) string {
	return filepath.Join(runDir, string(role)+".sock")
}

func makeDirs(f *config.File) error {
	for _, d := range []string{f.StateDir, f.RunDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make %s: %w: run as root, or set state_dir and run_dir", d, err)
		}
	}
	return nil
}

// rebuild makes the snapshot anew from file and the clients.
func (s *Supervisor) rebuild(file *config.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap, warnings, err := buildSnapshot(file, s.clients.list())
	if err != nil {
		return err
	}
	s.file, s.snapshot, s.warnings = file, snap, warnings
	for _, w := range warnings {
		s.log.Warn(w)
	}
	for _, c := range s.children {
		c.poke()
	}
	return nil
}

// reload reads the configuration again. With an error nothing changes.
func (s *Supervisor) reload() error {
	file, err := config.Load(s.cfg.Path)
	if err != nil {
		return badRequest{err}
	}
	s.mu.Lock()
	old := s.file
	s.mu.Unlock()
	if old.StateDir != file.StateDir || old.RunDir != file.RunDir || old.Listen != file.Listen || old.Machine != file.Machine {
		return badRequest{errors.New("machine, state_dir, run_dir and listen cannot change while spillway runs: restart it")}
	}
	if err := s.rebuild(file); err != nil {
		return badRequest{err}
	}
	for _, c := range s.children {
		if err := s.pushOnce(context.Background(), c); err != nil {
			return fmt.Errorf("the %s did not take the new configuration: %w", c.role, err)
		}
	}
	return nil
}

// reloads reads the configuration again whenever it is asked to by a signal.
func (s *Supervisor) reloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.cfg.Reload:
			if err := s.reload(); err != nil {
				s.log.Error("the configuration was not taken, everything stays as it was", "err", err)
			}
		}
	}
}

// push keeps telling a child the snapshot.
func (s *Supervisor) push(ctx context.Context, c *child) {
	for {
		err := s.pushOnce(ctx, c)
		wait := pushEvery
		if err != nil {
			wait = 20 * time.Millisecond
			if c.up() {
				wait = time.Second
				s.log.Error("snapshot refused", "role", c.role, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-c.poked:
		case <-time.After(wait):
		}
	}
}

func (s *Supervisor) pushOnce(ctx context.Context, c *child) error {
	s.mu.Lock()
	snap := s.snapshot
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := c.client.Apply(ctx, snap); err != nil {
		return err
	}
	c.applied(snap.Stamp)
	return nil
}

// routes is the API of the supervisor: what it knows itself, and doors to the
// roles.
func (s *Supervisor) routes() http.Handler {
	mux := http.NewServeMux()
	for _, c := range s.children {
		switch c.role {
		case engine.RoleHost:
			mux.Handle("/v1/tasks", c.proxy())
			mux.Handle("/v1/tasks/", c.proxy())
		case engine.RoleEgress:
			mux.Handle("/v1/endpoints", c.proxy())
			mux.Handle("/v1/flows", c.proxy())
		}
	}
	mux.Handle("POST /v1/reload", handler(func(*http.Request) (struct{}, error) { return struct{}{}, s.reload() }))
	mux.Handle("GET /v1/status", handler(s.status))
	mux.Handle("POST /v1/clients", handler(s.addClient))
	mux.Handle("DELETE /v1/clients/{name}", handler(s.removeClient))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fmt.Errorf("%w: %s %s on this machine, whose roles are %v", errNotFound, r.Method, r.URL.Path, supervised(s.file)))
	})
	return mux
}

func (s *Supervisor) status(r *http.Request) ([]api.Status, error) {
	s.mu.Lock()
	machine, stamp, warnings := s.file.Machine, s.snapshot.Stamp, s.warnings
	s.mu.Unlock()
	var out []api.Status
	for _, c := range s.children {
		st := api.Status{Machine: machine, Role: string(c.role), PID: c.pid(), Restarts: c.restarts(), Warnings: warnings}
		warnings = nil // once is enough
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		if list, err := c.client.Status(ctx); err == nil && len(list) == 1 {
			st.Stamp, st.Drops = list[0].Stamp, list[0].Drops
			st.Ready = list[0].Ready && st.Stamp == stamp
		}
		cancel()
		out = append(out, st)
	}
	return out, nil
}
