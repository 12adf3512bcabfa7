package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/tunnel"
)

// RoleConfig is what a role needs.
type RoleConfig struct {
	Path   string // of the configuration
	Logger *slog.Logger
}

// role is what host and egress have in common: the engine, and the last
// snapshot.
type role struct {
	kind   engine.Role
	file   *config.File
	log    *slog.Logger
	engine *engine.Engine
	ports  *device.Group
	key    tunnel.PrivateKey

	mu       sync.Mutex
	snapshot *api.Snapshot // guarded by mu; nil until the first
}

// listenOn is where a role's tunnels listen. The zero listenOn is any free
// port of both families.
type listenOn struct {
	port   int
	family tunnel.Family
}

// wireguardListen is what listen.wireguard asks for. The socket cannot be bound
// to one address yet: an address narrows it to its family.
func wireguardListen(a netip.AddrPort) listenOn {
	l := listenOn{port: int(a.Port())}
	switch {
	case a.Addr().IsUnspecified():
	case a.Addr().Is4():
		l.family = tunnel.IPv4Family
	default:
		l.family = tunnel.IPv6Family
	}
	return l
}

// newRole reads the configuration and makes the engine.
func newRole(kind engine.Role, cfg RoleConfig, listen listenOn, log *flowlog.Logger, onDown func(uint32, error)) (*role, error) {
	file, err := config.Load(cfg.Path)
	if err != nil {
		return nil, err
	}
	if err := privileged(); err != nil {
		return nil, err
	}
	if err := makeDirs(file); err != nil {
		return nil, err
	}
	r := &role{kind: kind, file: file, log: cfg.Logger.With("role", kind)}
	if r.key, err = machineKey(file.StateDir, kind); err != nil {
		return nil, err
	}
	if r.ports, err = device.NewGroup(device.Config{OnPortDown: onDown}); err != nil {
		return nil, err
	}
	tables, err := tableDir(file.RunDir)
	if err != nil {
		return nil, err
	}
	r.engine, err = engine.New(engine.Config{
		Machine: file.Machine,
		Role:    kind,
		Link:    r.ports,
		Tunnels: func(peer string) (engine.Tunnel, error) {
			log := r.log.With("tunnel", peer)
			t, err := tunnel.NewStock(tunnel.Config{
				PrivateKey: r.key, ListenPort: listen.port, Family: listen.family, MTU: tunnelMTU(file), Logger: log,
			})
			if err != nil {
				return nil, err
			}
			return remember(t, filepath.Join(file.RunDir, "peers-"+string(kind)+"-"+peer), log), nil
		},
		TableDir:        tables,
		MaxFlows:        file.Limits.MaxFlows,
		MaxFlowsPerTask: file.Limits.MaxFlowsPerTask,
		NewFlowsPerTask: file.Limits.NewFlowsPerTask,
		MaxHalfOpen:     file.Limits.MaxHalfOpen,
		Timeouts: flowtable.Timeouts{
			Established: file.Timeouts.TCPEstablished, HalfOpen: file.Timeouts.TCPHalfOpen,
			HalfClosed: file.Timeouts.TCPHalfClosed, UDP: file.Timeouts.UDP, UDPOneWay: file.Timeouts.UDPOneWay,
			DNS: file.Timeouts.UDPDNS, ICMP: file.Timeouts.ICMP,
		},
		ReservedPorts:   file.NAT.Ports(),
		MTU:             tunnelMTU(file),
		FlowLog:         log,
		FlowLogInterval: file.Log.Interval,
		Logger:          r.log,
	})
	return r, err
}

// tunnelMTU is the MTU of everything inside the tunnels of this machine.
func tunnelMTU(f *config.File) int {
	if f.MTU != 0 {
		return f.MTU
	}
	return tunnel.DefaultMTU
}

// tableDir is where flow tables lie: run_dir if that is a tmpfs, else a
// directory of ours in /dev/shm. A table on a disk would stall the path
// whenever the kernel writes it back.
func tableDir(runDir string) (string, error) {
	dir := filepath.Join(runDir, "flows")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("flow tables: %w", err)
	}
	if flowtable.CheckDir(dir) == nil {
		return dir, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(runDir, &st); err != nil {
		return "", fmt.Errorf("flow tables: %s: %w", runDir, err)
	}
	shm := fmt.Sprintf("/dev/shm/spillway-%d-%x", os.Getuid(), st.Ino)
	if err := os.Mkdir(shm, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("flow tables: neither %s nor /dev/shm can be used: %w: set run_dir to a directory on a tmpfs", dir, err)
	}
	if err := unix.Lstat(shm, &st); err != nil || int(st.Uid) != os.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 {
		return "", fmt.Errorf("flow tables: %s is not a private directory of ours: remove it", shm)
	}
	return shm, nil
}

// take keeps s if it is not older than what is there, and reports whether it
// says anything new.
func (r *role) takeLocked(s *api.Snapshot) error {
	if r.snapshot == nil {
		return nil
	}
	switch have := r.snapshot.Stamp; {
	case s.Stamp.Cluster != have.Cluster:
		return badRequest{fmt.Errorf("snapshot of another store (%q, have %q)", s.Stamp.Cluster, have.Cluster)}
	case s.Stamp.Revision < have.Revision:
		return badRequest{fmt.Errorf("snapshot is older (revision %d, have %d)", s.Stamp.Revision, have.Revision)}
	}
	return nil
}

func (r *role) status(ready bool) []api.Status {
	st := api.Status{Machine: r.file.Machine, Role: string(r.kind), PID: os.Getpid(), Drops: r.engine.Drops()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snapshot != nil {
		st.Stamp, st.Ready = r.snapshot.Stamp, ready
	}
	return []api.Status{st}
}

// run serves the role's own API and carries packets until ctx ends.
func (r *role) run(ctx context.Context, h http.Handler, more ...func(context.Context) error) error {
	path := rolePath(r.file.RunDir, r.kind)
	l, err := listenUnix(path)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := append([]func(context.Context) error{
		r.engine.Run,
		func(ctx context.Context) error { return serve(ctx, l, h, r.log) },
	}, more...)
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer cancel() // one for all
			errs[i] = part(ctx)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// readJSON reads a file that writeFile wrote; one that is not there leaves v
// as it is.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
