package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/fe919326/spillway/internal/hostnet"
)

// Mode is one way for a task to reach the server.
type Mode interface {
	Name() string
	// Prepare does once what every round needs, in a directory of its own.
	Prepare(ctx context.Context, dir string) error
	// Up connects task and server over the namespaces. What it started before
	// an error it has ended again.
	Up(ctx context.Context, n *net3) (*path, error)
}

// path is a mode that works: where load starts and what carries it.
type path struct {
	apps    []*hostnet.NS // where tasks run; the second, if any, is another task
	server  netip.Addr
	tunnels []int // process ids of the tunnel programs; none for the kernel
	undo    []func() error
}

func (p *path) close() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		errs = append(errs, p.undo[i]())
	}
	p.undo = nil
	return errors.Join(errs...)
}

// other is where a second task runs: in its own namespace if the mode has
// one, else beside the first.
func (p *path) other() *hostnet.NS { return p.apps[len(p.apps)-1] }

func modeOf(name string, cfg *Config) Mode {
	switch name {
	case ModeKernel:
		return kernelMode{}
	case ModeWireGuard:
		return &wireguardMode{}
	case ModeNebula:
		return &nebulaMode{name: name, binary: cfg.Nebula, cipher: "aes"}
	case ModeNebulaChaCha:
		return &nebulaMode{name: name, binary: cfg.Nebula, cipher: "chachapoly"}
	case ModeSpillway:
		return &spillwayMode{binary: cfg.Spillway}
	}
	return nil // Config.check lets no other name pass
}

// kernelMode has no tunnel.
type kernelMode struct{}

func (kernelMode) Name() string                          { return ModeKernel }
func (kernelMode) Prepare(context.Context, string) error { return nil }

func (kernelMode) Up(ctx context.Context, n *net3) (*path, error) {
	if err := n.task.conn.SetRoute(hostnet.Route{Dst: subnetCIDR, Via: egressAddr, Dev: linkUnderlay}); err != nil {
		return nil, err
	}
	if err := n.masquerade(ctx, linkUnderlay); err != nil {
		return nil, err
	}
	return &path{apps: []*hostnet.NS{n.task.ns}, server: serverAddr}, nil
}

// makeDir is a directory that closing the path removes.
func (p *path) makeDir(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "run-")
	if err != nil {
		return "", err
	}
	p.undo = append(p.undo, func() error { return os.RemoveAll(dir) })
	return dir, nil
}

// run starts a program of the tunnel.
func (p *path) run(ns *hostnet.NS, c command) (*process, error) {
	x, err := start(ns, c)
	if err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func() error {
		err := x.alive()
		x.stop()
		return err // a tunnel that died on the way measured nothing
	})
	return x, nil
}

// failed closes a path that was not finished.
func (p *path) failed(mode string, err error) (*path, error) {
	return nil, errors.Join(fmt.Errorf("%s: %w", mode, err), p.close())
}
