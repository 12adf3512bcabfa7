// Package lab runs whole engines in memory: hosts and egresses with all their
// goroutines, joined by a wire that a test may make lose, double, reorder and
// delay packets, with tasks, servers and stock clients at the edges. It needs
// no root and no kernel interface.
//
// Timers of engines run on a fake clock that stands still until a test moves
// it. When a test fails, the lab prints what passed where and writes it as
// pcapng.
package lab

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/tunnel"
	"go.uber.org/goleak"
)

// Account is the account everything in a lab belongs to.
const Account = "default"

// Lab is a small world of machines. Its methods are for the test's goroutine.
type Lab struct {
	TB    testing.TB
	Clock *clock.Fake
	Trace *Trace
	Wire  *Wire

	owners sync.Map // outside address to *Machine

	snapshot api.Snapshot
	machines []*Machine
	subnets  map[string]*Subnet
	seen     map[string]uint64 // drops noted in the trace so far
}

// New returns an empty lab that ends with the test. It fails the test if
// anything it started is left then.
func New(tb testing.TB) *Lab {
	before := goleak.IgnoreCurrent()
	l := &Lab{
		TB: tb, Clock: clock.NewFake(), Trace: newTrace(clock.System().Wall),
		subnets: make(map[string]*Subnet), seen: make(map[string]uint64),
	}
	l.Wire = newWire(1, l.Trace)
	l.snapshot.Stamp.Cluster = "lab"
	l.snapshot.InnerPools = []netip.Prefix{netip.MustParsePrefix("100.112.0.0/12"), netip.MustParsePrefix("fd53:7069:6c6c::/48")}
	tb.Cleanup(func() { goleak.VerifyNone(tb, before) })
	tb.Cleanup(func() {
		l.noteDrops()
		for _, m := range l.machines {
			m.Stop()
		}
		if tb.Failed() {
			l.report()
		}
	})
	return l
}

// report shows what happened.
func (l *Lab) report() {
	var b strings.Builder
	l.Trace.Print(&b, 150)
	l.TB.Logf("what passed where:\n%s", b.String())
	dir := l.TB.ArtifactDir()
	if f := flag.Lookup("test.artifacts"); f == nil || f.Value.String() != "true" {
		var err error // ArtifactDir goes with the test
		if dir, err = os.MkdirTemp("", "spillway-lab-"); err != nil {
			l.TB.Log(err)
			return
		}
	}
	path := filepath.Join(dir, strings.ReplaceAll(l.TB.Name(), "/", "_")+".pcapng")
	f, err := os.Create(path)
	if err == nil {
		err = l.Trace.WriteCapture(f)
		f.Close()
	}
	l.TB.Logf("all of it: %s (%v)", path, err)
}

// Subnet is a private network: servers find endpoints' addresses, and the
// other way round, as on one link.
type Subnet struct {
	Name string

	lab   *Lab
	port  uint32   // link port of every egress
	nodes sync.Map // address to *Node
}

// Subnet makes a subnet. All of them stand before the first egress starts.
func (l *Lab) Subnet(name string, cidrs ...string) *Subnet {
	s := &Subnet{Name: name, lab: l, port: uint32(len(l.subnets) + 7)}
	l.subnets[name] = s
	var ps []netip.Prefix
	for _, c := range cidrs {
		ps = append(ps, netip.MustParsePrefix(c))
	}
	l.snapshot.Subnets = append(l.snapshot.Subnets, api.Subnet{Account: Account, Name: name, Zone: "a", CIDRs: ps})
	return s
}

// Server puts a node on the subnet.
func (s *Subnet) Server(name string, addrs ...string) *Node {
	n := s.lab.newNode(name, parseAddrs(addrs))
	n.emit = func(p packet.Packet) {
		var h packet.Parsed
		if h.Parse(&p) == packet.OK {
			if m := s.lab.ownerOf(packet.ToNetip(h.Dst)); m != nil {
				p.Port = s.port
				m.put(p)
				return
			}
		}
		s.lab.Trace.add(s.Name, p, "lost: no such address on the subnet")
	}
	for _, a := range n.Addrs {
		s.nodes.Store(a, n)
	}
	return n
}

// deliver carries what an egress put onto the subnet to the server it is for.
func (s *Subnet) deliver(p packet.Packet) {
	var h packet.Parsed
	if h.Parse(&p) == packet.OK {
		if n, ok := s.nodes.Load(packet.ToNetip(h.Dst)); ok {
			n.(*Node).deliver(p)
			return
		}
	}
	s.lab.Trace.add(s.Name, p, "lost: no such address on the subnet")
}

// ownerOf is the machine that an outside address belongs to, or nil.
func (l *Lab) ownerOf(a netip.Addr) *Machine {
	m, _ := l.owners.Load(a)
	owner, _ := m.(*Machine)
	return owner
}

// Endpoint describes an endpoint to make.
type Endpoint struct {
	ID     string
	Subnet *Subnet
	Owner  *Machine
	V4, V6 string // outside addresses; "" for none
	// Allow are its rules. Default: everything.
	Allow []api.Rule
	// Lend are the inner prefixes, by machine. A client gets single addresses.
	Lend map[string][]string
	// UDPMapping as in api.Endpoint.
	UDPMapping string
}

// Everything is the rules that allow all.
func Everything() []api.Rule {
	return []api.Rule{
		{Protocol: "-1", CIDR: netip.MustParsePrefix("0.0.0.0/0")},
		{Protocol: "-1", CIDR: netip.MustParsePrefix("::/0")},
	}
}

// Endpoint adds an endpoint with a security group of its own, named like it.
func (l *Lab) Endpoint(e Endpoint) {
	if e.Allow == nil {
		e.Allow = Everything()
	}
	a := api.EndpointAddress{Owner: e.Owner.Name}
	for _, v := range []struct {
		text string
		to   *netip.Addr
	}{{e.V4, &a.V4}, {e.V6, &a.V6}} {
		if v.text != "" {
			*v.to = netip.MustParseAddr(v.text)
			l.owners.Store(*v.to, e.Owner)
		}
	}
	for machine, prefixes := range e.Lend {
		for _, p := range prefixes {
			a.Prefixes = append(a.Prefixes, api.Delegation{Machine: machine, Prefix: netip.MustParsePrefix(p)})
		}
	}
	l.Change(func(s *api.Snapshot) {
		s.SecurityGroups = append(s.SecurityGroups, api.SecurityGroup{Account: Account, Name: e.ID, Egress: e.Allow})
		s.Endpoints = append(s.Endpoints, api.Endpoint{
			ID: e.ID, Account: Account, Subnet: e.Subnet.Name, SecurityGroups: []string{e.ID}, UDPMapping: e.UDPMapping,
			Addresses: []api.EndpointAddress{a}, Secret: bytes.Repeat([]byte{byte(len(s.Endpoints) + 1)}, 32),
		})
	})
}

// Rules replaces an endpoint's rules on all machines.
func (l *Lab) Rules(endpoint string, rules ...api.Rule) {
	l.Change(func(s *api.Snapshot) {
		for i := range s.SecurityGroups {
			if s.SecurityGroups[i].Name == endpoint {
				s.SecurityGroups[i].Egress = rules
			}
		}
	})
}

// Change changes the snapshot and gives it to every machine, egresses first.
func (l *Lab) Change(f func(*api.Snapshot)) {
	l.TB.Helper()
	f(&l.snapshot)
	l.snapshot.Stamp.Revision++
	for _, role := range []engine.Role{engine.RoleEgress, engine.RoleHost} {
		for _, m := range l.machines {
			if m.role == role && m.Engine != nil {
				if err := m.Engine.Apply(l.copyOfSnapshot()); err != nil {
					l.TB.Fatalf("apply to %s: %v", m.Name, err)
				}
			}
		}
	}
}

// copyOfSnapshot shares nothing with the lab's: engines keep what they get.
func (l *Lab) copyOfSnapshot() *api.Snapshot {
	text, err := json.Marshal(l.snapshot)
	if err != nil {
		l.TB.Fatal(err)
	}
	s := new(api.Snapshot)
	if err := json.Unmarshal(text, s); err != nil {
		l.TB.Fatal(err)
	}
	return s
}

// addMachine adds a machine to the snapshot.
func (l *Lab) addMachine(name, role string) {
	key := tunnel.Key{byte(len(l.snapshot.Machines) + 1), 1}
	l.Change(func(s *api.Snapshot) {
		s.Machines = append(s.Machines, api.Machine{Name: name, Role: role, PublicKeys: []string{key.String()}})
	})
}

// Client adds a stock WireGuard client that leaves by an endpoint: a machine
// without spillway, and with single addresses as its inner prefixes.
func (l *Lab) Client(name, endpoint string, addrs ...string) *Node {
	n := l.newNode(name, parseAddrs(addrs))
	l.addMachine(name, "client")
	var owner string
	l.Change(func(s *api.Snapshot) {
		for i := range s.Endpoints {
			if a := &s.Endpoints[i].Addresses[0]; s.Endpoints[i].ID == endpoint {
				owner = a.Owner
				for _, ip := range n.Addrs {
					a.Prefixes = append(a.Prefixes, api.Delegation{Machine: name, Service: name, Prefix: netip.PrefixFrom(ip, ip.BitLen())})
				}
			}
		}
	})
	n.emit = func(p packet.Packet) { l.Wire.carry(name, owner, slices.Clone(p.Data)) }
	m := &Machine{Name: name, lab: l}
	m.startClient(n, owner)
	l.machines = append(l.machines, m)
	return n
}

// Eventually waits until ok holds.
func (l *Lab) Eventually(what string, ok func() bool) {
	l.TB.Helper()
	clk := clock.System()
	for end := clk.Mono().Add(patience); !ok(); time.Sleep(200 * time.Microsecond) {
		if clk.Mono() > end {
			l.noteDrops()
			l.TB.Fatalf("waited in vain: %s", what)
		}
	}
}

// noteDrops writes into the trace what was refused since it was last called.
func (l *Lab) noteDrops() {
	for _, m := range l.machines {
		for reason, n := range m.Drops() {
			key := m.Name + " " + reason
			if d := n - l.seen[key]; d != 0 {
				l.seen[key] = n
				l.Trace.Note(m.Name, "refused %d: %s", d, reason)
			}
		}
	}
}

func parseAddrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// quiet is a logger for engines: what they have to say is no news here.
func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// gatewaysOf are the endpoint's own inner addresses in a machine's prefixes.
func (l *Lab) gatewaysOf(machine, endpoint string) (owner string, gateways []netip.Addr) {
	for _, e := range l.snapshot.Endpoints {
		for _, a := range e.Addresses {
			for _, d := range a.Prefixes {
				if e.ID == endpoint && d.Machine == machine {
					owner = a.Owner
					gateways = append(gateways, d.Prefix.Masked().Addr().Next())
				}
			}
		}
	}
	if owner == "" {
		panic(fmt.Sprintf("lab: endpoint %s lends %s nothing", endpoint, machine))
	}
	return owner, gateways
}
