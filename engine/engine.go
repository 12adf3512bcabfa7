// Package engine is spillway's front door: it carries the packets of tasks
// out into a private subnet, and nothing back but the answers.
//
// An Engine plays one of two roles. A host reads packets from tasks' TUN
// devices, checks who sent them, tracks their flows outbound-only and seals
// them into a WireGuard tunnel. An egress opens the tunnel, holds every new
// flow to the endpoint's security groups, translates it to the endpoint's
// shared address and writes it onto the subnet. The way of a packet stands in
// outbound.go and inbound.go, one page per direction.
//
// New validates and starts nothing; Run starts everything, and returns when
// all of it has ended. What the engine does is told by one value, an
// api.Snapshot, given to Apply as often as it changes.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/tunnel"
)

// Reason says what was decided for a packet, and why.
type Reason = packet.Reason

// Batch is the packets a worker handles at once.
type Batch = packet.Batch

// Role is what an engine does.
type Role string

// The roles.
const (
	RoleHost   Role = "host"   // runs tasks
	RoleEgress Role = "egress" // owns endpoint addresses on a subnet
)

// Link is what a worker reads packets from and writes packets to: a group of
// TUN devices, or an in-memory pipe.
type Link interface {
	// Read fills b with at least one packet, each with its Port set. It
	// returns os.ErrClosed after Close.
	Read(b *packet.Batch) error
	// Write sends every packet of b that was not dropped to the port it
	// names. It never blocks, drops and counts instead, and is safe for
	// concurrent use.
	Write(b *packet.Batch)
	// Close ends Read. It is idempotent.
	Close() error
}

// Tunnel is the seam to the transport: tunnel.Transport is one.
type Tunnel interface {
	// Seal takes the packets of b that were not dropped, and leaves b empty.
	Seal(b *packet.Batch)
	// Open fills b with at least one packet. It returns os.ErrClosed once the
	// tunnel has ended.
	Open(b *packet.Batch) error
	// SetPeers replaces the set of peers; sessions of peers that stay live on.
	SetPeers([]tunnel.Peer) error
	// Run carries packets until ctx ends.
	Run(ctx context.Context) error
}

// Config is what New needs. Every field without "default" is required.
type Config struct {
	// Machine is this machine's name in snapshots.
	Machine string
	// Role is what this engine does.
	Role Role
	// Link connects the engine to tasks (host) or subnets (egress).
	Link Link
	// Tunnels makes the tunnel for a peer machine; an egress calls it once,
	// with an empty name. The engine runs and ends what it returns.
	Tunnels func(peer string) (Tunnel, error)
	// TableDir is where flow tables live, best on a tmpfs. Default: memory
	// that ends with the process.
	TableDir string
	// MaxFlows is the size of each flow table, in flows. Default 262,144.
	MaxFlows int
	// MaxFlowsPerTask caps one task's flows in a table. Default: MaxFlows.
	MaxFlowsPerTask int
	// MaxHalfOpen caps one task's TCP handshakes under way in a table. Default:
	// what flowtable has.
	MaxHalfOpen int
	// NewFlowsPerTask caps how many flows a task may start in a second, and
	// twice that at once. Default 20,000.
	NewFlowsPerTask int
	// Timeouts of flows. The zero value means the defaults.
	Timeouts flowtable.Timeouts
	// ReservedPorts are never used as outside ports.
	ReservedPorts []uint16
	// MTU is the largest packet the tunnel carries, in bytes. Default 1,420.
	MTU int
	// FlowLog takes records of flows and refusals. Default nil: no log.
	FlowLog *flowlog.Logger
	// FlowLogInterval is how often live flows are logged. Default 60 s.
	FlowLogInterval time.Duration
	// LoosePickup is how long after the start an egress lets mid-stream TCP
	// segments of tasks open a flow, because their state was lost. Default 0:
	// never.
	LoosePickup time.Duration
	// Clock tells the time. Default: the machine's.
	Clock clock.Clock
	// Logger takes what operators should know. Default slog.Default().
	Logger *slog.Logger
}

// Engine carries packets. Its methods are safe for concurrent use.
type Engine struct {
	// Immutable after New.
	cfg   Config
	clock clock.Clock
	log   *slog.Logger
	ready chan struct{} // closed when Run has started everything

	// What the workers read, loaded once per batch.
	host   atomic.Pointer[hostView]
	egress atomic.Pointer[egressView]

	tap atomic.Pointer[Tap]

	drops    counters
	watchers watchers

	mu       sync.Mutex
	running  context.Context // guarded by mu; nil before Run and after
	group    *group          // guarded by mu; the goroutines of Run
	snapshot *api.Snapshot   // guarded by mu; last applied
	tunnels  map[string]*tunnelRun
	slots    map[slotKey]*slot // egress: guarded by mu
	ports    map[string]uint32 // egress: link port of a subnet; guarded by mu
	tasks    map[string]*task  // host: guarded by mu
	byPort   []*task           // host: index is the port; guarded by mu
	flows    *flowtable.Table  // host: one table for all tasks; guarded by mu until Run
	retired  []retiredSlot     // egress: no longer served; guarded by mu
}

// New checks cfg and returns an engine that does nothing yet.
func New(cfg Config) (*Engine, error) {
	switch {
	case cfg.Machine == "":
		return nil, errors.New("engine: Machine is required")
	case cfg.Role != RoleHost && cfg.Role != RoleEgress:
		return nil, fmt.Errorf("engine: Role is %q, want %q or %q", cfg.Role, RoleHost, RoleEgress)
	case cfg.Link == nil:
		return nil, errors.New("engine: Link is required")
	case cfg.Tunnels == nil:
		return nil, errors.New("engine: Tunnels is required")
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 1 << 18
	}
	if cfg.MaxFlowsPerTask == 0 {
		cfg.MaxFlowsPerTask = cfg.MaxFlows
	}
	if cfg.NewFlowsPerTask == 0 {
		cfg.NewFlowsPerTask = 20_000
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1420
	}
	if cfg.FlowLogInterval == 0 {
		cfg.FlowLogInterval = time.Minute
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	e := &Engine{
		cfg:     cfg,
		clock:   cfg.Clock,
		log:     cfg.Logger,
		ready:   make(chan struct{}),
		tunnels: make(map[string]*tunnelRun),
		slots:   make(map[slotKey]*slot),
		ports:   make(map[string]uint32),
		tasks:   make(map[string]*task),
	}
	e.host.Store(&hostView{})
	e.egress.Store(&egressView{})
	return e, nil
}

// Run carries packets until ctx ends, then ends every goroutine, tunnel and
// table it started. It may be called once.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := newGroup(cancel)

	e.mu.Lock()
	if e.running != nil {
		e.mu.Unlock()
		return errors.New("engine: Run was called before")
	}
	e.running, e.group = ctx, g
	err := e.startLocked(ctx, g)
	e.mu.Unlock()
	if err != nil {
		cancel()
	} else {
		close(e.ready)
	}

	g.start(func() error {
		<-ctx.Done()
		return e.cfg.Link.Close()
	})
	runErr := g.wait()
	if err == nil {
		err = runErr
	}
	return errors.Join(err, e.closeTables())
}

// startLocked starts what the role always has, and what was applied before.
func (e *Engine) startLocked(ctx context.Context, g *group) error {
	switch e.cfg.Role {
	case RoleHost:
		t, err := e.openTable(e.tableConfig("host", nil), e.clock.Mono())
		if err != nil {
			return fmt.Errorf("flow table of the host: %w", err)
		}
		e.flows = t
		e.publishHostLocked()
		w := e.newWorker()
		g.start(func() error { return e.hostOutboundLoop(w) })
	case RoleEgress:
		if _, err := e.tunnelLocked(""); err != nil {
			return err
		}
		w := e.newWorker()
		g.start(func() error { return e.egressInboundLoop(w) })
	}
	g.start(func() error { return e.housekeeping(ctx) })
	if e.snapshot != nil {
		return e.applyLocked(e.snapshot)
	}
	return nil
}

// housekeeping sweeps expired flows in small steps, and samples live ones
// for the flow log.
func (e *Engine) housekeeping(ctx context.Context) error {
	const step = 100 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	nextSample := e.clock.Mono().Add(e.cfg.FlowLogInterval)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := e.clock.Mono()
		e.sweep(now)
		e.closeRetired(now)
		if now >= nextSample {
			nextSample = now.Add(e.cfg.FlowLogInterval)
			e.sampleFlows(ctx, now)
		}
	}
}

// Ready is closed when Run has started everything that New was told of.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// isClosed tells an end that was asked for from a failure.
func isClosed(err error) bool { return errors.Is(err, os.ErrClosed) }
