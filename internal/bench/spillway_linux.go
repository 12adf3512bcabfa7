package bench

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/hostnet"
)

// spillwayMode is spillway as an operator runs it: two machines that share a
// file, two tasks attached by the command line, every feature on.
type spillwayMode struct {
	binary string
	dir    string
}

func (*spillwayMode) Name() string { return ModeSpillway }

func (m *spillwayMode) Prepare(_ context.Context, dir string) error {
	m.dir = dir
	fi, err := os.Stat(m.binary)
	if err == nil && fi.Mode()&0o111 == 0 {
		err = errors.New("cannot be run")
	}
	if err != nil {
		return fmt.Errorf("spillway binary %s: %w (make build)", m.binary, err)
	}
	return nil
}

// end is one of the two machines.
type end struct {
	name, role string
	space      *space
	addr       netip.Addr
	dir        string // state and sockets
	public     string // key
}

func (e *end) api() string { return "unix://" + filepath.Join(e.dir, "api.sock") }

// makeKey puts the machine's key where it looks for it, so that the other
// machine's file can name its public half.
func (e *end) makeKey() error {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	e.public = base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
	keys := filepath.Join(e.dir, "state", "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(keys, e.role+".key"), []byte(base64.StdEncoding.EncodeToString(k.Bytes())+"\n"), 0o600)
}

func (e *end) config(ends []*end, mtu int) string {
	machines := ""
	for _, x := range ends {
		machines += fmt.Sprintf("  - { name: %s, role: %s, public_key: %q, address: \"%s\" }\n", x.name, x.role, x.public, netip.AddrPortFrom(x.addr, wireguardPort))
	}
	return fmt.Sprintf(`machine: %s
state_dir: %s/state
run_dir: %s
listen: { wireguard: "0.0.0.0:%d", api: "%s" }
mtu: %d
machines:
%ssubnets:
  - { name: subnet-a, zone: a, cidrs: [%s], interface: %s, isolate: none, driver: tun, claim: arp, addresses: [%s] }
security_groups:
  - { name: bench, egress: [ { protocol: all, cidrs: [%s] } ] }
connectors:
  - { name: bench, subnets: [subnet-a], security_groups: [bench] }
services:
  - { name: bench, egress: VPC, connector: bench }
log: { flow_log: %s/flows.log }
`, e.name, e.dir, e.dir, wireguardPort, e.api(), mtu, machines, subnetCIDR, linkSubnet, sharedAddr, subnetCIDR, e.dir)
}

// Up starts both machines and attaches two tasks.
func (m *spillwayMode) Up(ctx context.Context, n *net3) (*path, error) {
	p := &path{server: serverAddr}
	ends := []*end{
		{name: "egress-1", role: "egress", space: n.egress, addr: egressAddr},
		{name: "host-1", role: "host", space: n.task, addr: taskAddr},
	}
	for _, e := range ends {
		// Tables belong on a tmpfs.
		dir, err := os.MkdirTemp("/dev/shm", "spillway-bench-")
		if err != nil {
			return p.failed(ModeSpillway, err)
		}
		e.dir = dir
		p.undo = append(p.undo, func() error { return os.RemoveAll(dir) })
		if err := e.makeKey(); err != nil {
			return p.failed(ModeSpillway, err)
		}
	}
	for _, e := range ends {
		file := filepath.Join(e.dir, "spillway.yaml")
		if err := os.WriteFile(file, []byte(e.config(ends, n.mtu-wireguardCost)), 0o600); err != nil {
			return p.failed(ModeSpillway, err)
		}
		up, err := p.run(e.space.ns, command{path: m.binary, args: []string{"up", "--config", file}})
		if err != nil {
			return p.failed(ModeSpillway, err)
		}
		if err := m.ready(ctx, e, p); err != nil {
			return p.failed(ModeSpillway, errors.Join(err, up.alive(), errors.New(tail(up.errs.String()))))
		}
	}
	for i := range 2 {
		task, err := newSpace()
		if err != nil {
			return p.failed(ModeSpillway, err)
		}
		p.undo = append(p.undo, task.close)
		name := fmt.Sprintf("bench-%d", i+1)
		netns := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), task.ns.FD())
		if _, err := m.cli(ctx, n.task.ns, "attach", "--api", ends[1].api(), "--netns", netns, "--service", "bench", "--name", name); err != nil {
			return p.failed(ModeSpillway, err)
		}
		p.undo = append(p.undo, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err := m.cli(ctx, n.task.ns, "detach", "--api", ends[1].api(), name)
			return err
		})
		p.apps = append(p.apps, task.ns)
	}
	return p, nil
}

// ready waits until the machine works, and notes the processes of its roles.
func (m *spillwayMode) ready(ctx context.Context, e *end, p *path) error {
	out, err := m.cli(ctx, e.space.ns, "status", "--api", e.api(), "--wait", "--timeout", "10s", "--json")
	if err != nil {
		return err
	}
	var roles []api.Status
	if err := json.Unmarshal([]byte(out), &roles); err != nil {
		return fmt.Errorf("spillway status: %w", err)
	}
	for _, r := range roles {
		if r.PID > 0 {
			p.tunnels = append(p.tunnels, r.PID)
		}
	}
	return nil
}

// cli runs one command of spillway and returns what it prints.
func (m *spillwayMode) cli(ctx context.Context, ns *hostnet.NS, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	x, err := start(ns, command{path: m.binary, args: args})
	if err != nil {
		return "", err
	}
	return x.wait(ctx)
}
