package lab

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/internal/packet"
)

// Machine is a host or an egress: a whole engine between a pipe and the wire.
type Machine struct {
	Name   string
	Engine *engine.Engine // nil while it is stopped

	lab    *Lab
	role   engine.Role
	config func(*engine.Config)
	tasks  []*attachment // host: what a restart attaches again
	tables string        // where a crashed machine's flow tables are

	mu     sync.Mutex
	far    *device.PipeEnd   // guarded by mu; the other end of the engine's link
	nodes  map[uint32]*Node  // guarded by mu; host: tasks by port
	before map[string]uint64 // drops of former engines
	end    func()            // stops what runs; nil while it is stopped
}

// attachment is a task of a host.
type attachment struct {
	node *Node
	what engine.Attachment
}

// Egress adds a machine that owns endpoint addresses, and starts it. config
// may change what its engine is made with.
func (l *Lab) Egress(name string, config ...func(*engine.Config)) *Machine {
	return l.machine(name, engine.RoleEgress, config)
}

// Host adds a machine that runs tasks, and starts it.
func (l *Lab) Host(name string, config ...func(*engine.Config)) *Machine {
	return l.machine(name, engine.RoleHost, config)
}

func (l *Lab) machine(name string, role engine.Role, config []func(*engine.Config)) *Machine {
	m := &Machine{Name: name, lab: l, role: role, nodes: make(map[uint32]*Node), before: make(map[string]uint64)}
	m.config = func(c *engine.Config) {
		for _, f := range config {
			f(c)
		}
	}
	l.machines = append(l.machines, m)
	l.addMachine(name, string(role))
	m.Start()
	return m
}

// Start starts the machine, with the tasks it had.
func (m *Machine) Start() {
	l := m.lab
	l.TB.Helper()
	near, far := device.NewPipe()
	cfg := engine.Config{
		Machine: m.Name, Role: m.role, Link: near, Clock: l.Clock, MaxFlows: 4096, Logger: quiet(),
		Tunnels: func(peer string) (engine.Tunnel, error) { return l.Wire.Connect(m.Name, peer), nil },
	}
	m.config(&cfg)
	e, err := engine.New(cfg)
	if err != nil {
		l.TB.Fatalf("%s: %v", m.Name, err)
	}
	for _, s := range l.subnets {
		e.AddSubnet(Account, s.Name, s.port)
	}
	if err := e.Apply(l.copyOfSnapshot()); err != nil {
		l.TB.Fatalf("%s: %v", m.Name, err)
	}
	m.mu.Lock()
	m.far = far
	m.mu.Unlock()
	m.Engine = e

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var runErr error
	wg.Go(func() { runErr = e.Run(ctx) })
	wg.Go(func() { m.carry(far) })
	m.end = func() {
		cancel()
		wg.Wait()
		if runErr != nil {
			l.TB.Errorf("%s: Run: %v", m.Name, runErr)
		}
	}
	l.Eventually(m.Name+" is ready", func() bool {
		select {
		case <-e.Ready():
			return true
		default:
			return false
		}
	})
	for _, a := range m.tasks {
		if err := e.Attach(a.what); err != nil {
			l.TB.Fatal(err)
		}
	}
}

// Stop ends the machine as its operator would. It is idempotent.
func (m *Machine) Stop() {
	if m.end == nil {
		return
	}
	drops := m.Drops()
	m.end()
	m.end, m.Engine, m.before = nil, nil, drops
}

// Restart stops the machine and starts it again.
func (m *Machine) Restart() {
	m.Stop()
	m.lab.Trace.Note(m.Name, "restarted")
	m.Start()
}

// Crash ends the machine and starts it on its table files as they were when
// it died: nothing that an orderly end would write or tidy counts. It needs a
// TableDir.
func (m *Machine) Crash(tables string) {
	m.lab.TB.Helper()
	kept := m.lab.TB.TempDir()
	if err := os.CopyFS(kept, os.DirFS(tables)); err != nil {
		m.lab.TB.Fatal(err)
	}
	m.Stop()
	files, err := filepath.Glob(filepath.Join(kept, "*"))
	if err != nil {
		m.lab.TB.Fatal(err)
	}
	for _, f := range files {
		if err := os.Chmod(f, 0o600); err != nil {
			m.lab.TB.Fatal(err)
		}
	}
	m.tables = kept
	former := m.config
	m.config = func(c *engine.Config) {
		former(c)
		c.TableDir = kept
	}
	m.lab.Trace.Note(m.Name, "crashed")
	m.Start()
}

// carry hands on what the engine writes to its link, until that is closed.
func (m *Machine) carry(far *device.PipeEnd) {
	b := packet.NewBatch()
	for far.Read(b) == nil {
		for _, p := range b.Packets {
			if m.role == engine.RoleHost {
				m.mu.Lock()
				n := m.nodes[p.Port]
				m.mu.Unlock()
				if n != nil {
					n.deliver(p)
				}
				continue
			}
			for _, s := range m.lab.subnets {
				if s.port == p.Port {
					s.deliver(p)
				}
			}
		}
	}
}

// put gives the engine a packet on its link. With the machine down it is lost.
func (m *Machine) put(p packet.Packet) {
	m.mu.Lock()
	far := m.far
	m.mu.Unlock()
	b := packet.NewBatch()
	pk := b.Append(p.Data)
	if far == nil || pk == nil {
		return
	}
	pk.GSO, pk.Port = p.GSO, p.Port
	far.Write(b)
}

// Attach starts a task on a host that leaves by endpoint.
func (m *Machine) Attach(id, endpoint string, inner ...string) *Node {
	m.lab.TB.Helper()
	n := m.lab.newNode(id, parseAddrs(inner))
	a := &attachment{node: n}
	a.what.Task = api.Task{ID: id, Account: Account, Endpoint: endpoint, Inner: n.Addrs}
	m.mu.Lock()
	a.what.Port = 1
	for m.nodes[a.what.Port] != nil {
		a.what.Port++
	}
	m.nodes[a.what.Port] = n
	m.mu.Unlock()
	a.what.Egress, a.what.Gateways = m.lab.gatewaysOf(m.Name, endpoint)
	n.emit = func(p packet.Packet) {
		p.Port = a.what.Port
		m.put(p)
	}
	if err := m.Engine.Attach(a.what); err != nil {
		m.lab.TB.Fatal(err)
	}
	m.tasks = append(m.tasks, a)
	return n
}

// Detach ends a task.
func (m *Machine) Detach(id string) {
	m.lab.TB.Helper()
	if err := m.Engine.Detach(id); err != nil {
		m.lab.TB.Fatal(err)
	}
	m.tasks = slices.DeleteFunc(m.tasks, func(a *attachment) bool {
		if a.what.Task.ID != id {
			return false
		}
		m.mu.Lock()
		delete(m.nodes, a.what.Port)
		m.mu.Unlock()
		return true
	})
}

// startClient makes m the far end of a stock client's tunnel.
func (m *Machine) startClient(n *Node, egress string) {
	end := m.lab.Wire.Connect(m.Name, egress)
	ctx, cancel := context.WithCancel(context.Background())
	if err := end.SetPeers([]tunnelPeer{{Name: egress, ID: 1, AllowedIPs: anywhere}}); err != nil {
		m.lab.TB.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = end.Run(ctx) }) // it returns nil
	wg.Go(func() {
		for b := packet.NewBatch(); end.Open(b) == nil; {
			for _, p := range b.Packets {
				n.deliver(p)
			}
		}
	})
	m.end = func() { cancel(); wg.Wait() }
}

// Drops counts what the machine refused since the lab began, by reason.
func (m *Machine) Drops() map[string]uint64 {
	out := maps.Clone(m.before)
	if out == nil {
		out = make(map[string]uint64)
	}
	add := func(more map[string]uint64) {
		for r, n := range more {
			out[r] += n
		}
	}
	if m.Engine == nil {
		return out
	}
	add(m.Engine.Drops())
	for _, e := range m.Engine.Endpoints() {
		add(e.Drops)
	}
	for _, t := range m.Engine.Tasks() {
		add(t.Drops)
	}
	return out
}

// Dropped is how many packets the machine refused for a reason.
func (m *Machine) Dropped(r engine.Reason) uint64 { return m.Drops()[r.String()] }

// WaitDropped waits until the machine has refused n packets for a reason in
// all.
func (m *Machine) WaitDropped(r engine.Reason, n uint64) {
	m.lab.TB.Helper()
	m.lab.Eventually(m.Name+" refuses: "+r.String(), func() bool { return m.Dropped(r) >= n })
}

// Flows are the live flows of an egress.
func (m *Machine) Flows() []api.Flow { return slices.Collect(m.Engine.Flows()) }
