package engine

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"github.com/fe919326/spillway/tunnel"
)

// rig is an egress and a host whose workers a test drives by hand: no
// goroutine carries a packet, so that what a packet meets is plain to see.
type rig struct {
	t      testing.TB
	clock  *clock.Fake
	host   *Engine
	egress *Engine
	hostW  *worker // of the host's outbound direction
	out    *worker // egress, outbound
	in     *worker // egress, inbound
	back   *worker // host, inbound
}

var (
	outside4 = netip.MustParseAddr("10.0.1.50")
	outside6 = netip.MustParseAddr("fd00:1::50")
	task4    = netip.MustParseAddr("100.112.0.2")
	task6    = netip.MustParseAddr("fd53:7069:6c6c::2")
	other4   = netip.MustParseAddr("100.112.0.3")
	other6   = netip.MustParseAddr("fd53:7069:6c6c::3")
	server4  = netip.MustParseAddr("10.0.1.10")
	server6  = netip.MustParseAddr("fd00:1::10")
)

const (
	taskPort   = 1
	otherPort  = 2
	subnetPort = 7
	hostPeer   = 2 // the host's ID among the egress's peers: its place in Machines
)

// deadTunnel takes packets and gives none: the rig moves them itself.
type deadTunnel struct {
	once   sync.Once
	closed chan struct{}
}

func newDeadTunnel() *deadTunnel { return &deadTunnel{closed: make(chan struct{})} }

func (d *deadTunnel) Seal(b *packet.Batch)           { b.Reset() }
func (d *deadTunnel) Open(*packet.Batch) error       { <-d.closed; return os.ErrClosed }
func (d *deadTunnel) SetPeers(p []tunnel.Peer) error { return nil }
func (d *deadTunnel) Run(ctx context.Context) error {
	<-ctx.Done()
	d.once.Do(func() { close(d.closed) })
	return nil
}

// snapshotFor is one endpoint, one host and two tasks.
func snapshotFor(t testing.TB, rules ...api.Rule) *api.Snapshot {
	t.Helper()
	key := func(fill byte) []string {
		k := tunnel.Key{fill, 1}
		return []string{k.String()}
	}
	return &api.Snapshot{
		Stamp:          api.Stamp{Cluster: "test", Revision: 1},
		Subnets:        []api.Subnet{{Account: "default", Name: "a", Zone: "a", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}},
		SecurityGroups: []api.SecurityGroup{{Account: "default", Name: "g", Egress: rules}},
		Endpoints: []api.Endpoint{{
			ID: "eni-1", Account: "default", Subnet: "a", SecurityGroups: []string{"g"}, Secret: append(make([]byte, 31), 9),
			Addresses: []api.EndpointAddress{{
				V4: outside4, V6: outside6, Owner: "egress-1",
				Prefixes: []api.Delegation{
					{Machine: "host-1", Prefix: netip.MustParsePrefix("100.112.0.0/22")},
					{Machine: "host-1", Prefix: netip.MustParsePrefix("fd53:7069:6c6c::/64")},
				},
			}},
		}},
		Machines: []api.Machine{
			{Name: "egress-1", Role: "egress", PublicKeys: key(1), Address: netip.MustParseAddrPort("192.0.2.1:51820")},
			{Name: "host-1", Role: "host", PublicKeys: key(2)},
		},
		InnerPools: []netip.Prefix{netip.MustParsePrefix("100.112.0.0/12"), netip.MustParsePrefix("fd53:7069:6c6c::/48")},
	}
}

func any4and6() []api.Rule {
	return []api.Rule{
		{Protocol: "-1", CIDR: netip.MustParsePrefix("0.0.0.0/0")},
		{Protocol: "-1", CIDR: netip.MustParsePrefix("::/0")},
	}
}

func newRig(t testing.TB, rules ...api.Rule) *rig {
	t.Helper()
	if rules == nil {
		rules = any4and6()
	}
	r := &rig{t: t, clock: clock.NewFake()}
	start := func(machine string, role Role) *Engine {
		link, other := device.NewPipe()
		e, err := New(Config{
			Machine: machine, Role: role, Link: link, Clock: r.clock, MaxFlows: 4096,
			Tunnels: func(string) (Tunnel, error) { return newDeadTunnel(), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		e.AddSubnet("default", "a", subnetPort)
		if err := e.Apply(snapshotFor(t, rules...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run of %s: %v", machine, err)
			}
			other.Close()
		})
		<-e.ready
		return e
	}
	r.egress = start("egress-1", RoleEgress)
	r.host = start("host-1", RoleHost)
	for id, a := range map[string]struct {
		port   uint32
		inner4 netip.Addr
		inner6 netip.Addr
	}{"task-1": {taskPort, task4, task6}, "task-2": {otherPort, other4, other6}} {
		err := r.host.Attach(Attachment{
			Task: api.Task{ID: id, Endpoint: "eni-1", Inner: []netip.Addr{a.inner4, a.inner6}}, Port: a.port, Egress: "egress-1",
			Gateways: []netip.Addr{netip.MustParseAddr("100.112.0.1"), netip.MustParseAddr("fd53:7069:6c6c::1")},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.hostW, r.out, r.in, r.back = r.host.newWorker(), r.egress.newWorker(), r.egress.newWorker(), r.host.newWorker()
	return r
}

// outcome is what became of one packet.
type outcome struct {
	data   []byte     // as it left, nil if it was refused
	reply  []byte     // what the sender got back, if anything
	reason Reason     // OK, or why it was refused
	gso    packet.GSO // of what left
	at     string     // "host" or "endpoint": who refused it
	port   uint32     // where it left
}

// task sends a packet from a task's device as far as the subnet.
func (r *rig) task(port uint32, data []byte) outcome {
	return r.taskPacket(port, packet.Packet{Data: data})
}

func (r *rig) taskPacket(port uint32, p packet.Packet) outcome {
	r.t.Helper()
	b := packet.NewBatch()
	pk := pkt.OfPacket(b, p)
	pk.Port = port
	before := r.hostDrops(port)
	r.hostW.hostOutbound(r.host.host.Load(), b)
	if len(b.Packets[0].Data) == 0 {
		return outcome{reason: diff(before, r.hostDrops(port)), reply: first(r.hostW.replies), at: "host"}
	}
	return r.tunnel(hostPeer, *pk)
}

// tunnel puts a packet into the egress as if peer had sent it.
func (r *rig) tunnel(peer uint32, p packet.Packet) outcome {
	r.t.Helper()
	b := packet.NewBatch()
	pk := pkt.OfPacket(b, p)
	pk.Peer = peer
	before := r.egressDrops()
	r.out.egressOutbound(r.egress.egress.Load(), b)
	reply := first(r.out.replies)
	if reply != nil && peer == hostPeer {
		reply = r.toTask(reply)
	}
	if len(b.Packets[0].Data) == 0 {
		return outcome{reason: diff(before, r.egressDrops()), reply: reply, at: "endpoint"}
	}
	return outcome{data: b.Packets[0].Data, gso: b.Packets[0].GSO, reason: packet.OK, reply: reply, port: b.Packets[0].Port}
}

// subnet sends a packet from the subnet as far as the task.
func (r *rig) subnet(data []byte) outcome { return r.subnetPacket(packet.Packet{Data: data}) }

func (r *rig) subnetPacket(p packet.Packet) outcome {
	r.t.Helper()
	b := packet.NewBatch()
	pk := pkt.OfPacket(b, p)
	pk.Port = subnetPort
	before := r.egressDrops()
	r.in.egressInbound(r.egress.egress.Load(), b)
	if len(b.Packets[0].Data) == 0 {
		return outcome{reason: diff(before, r.egressDrops()), reply: first(r.in.replies), at: "endpoint"}
	}
	o := outcome{gso: b.Packets[0].GSO, reason: packet.OK}
	h := packet.NewBatch()
	pkt.OfPacket(h, b.Packets[0])
	r.back.hostInbound(r.host.host.Load(), h)
	o.data, o.port = h.Packets[0].Data, h.Packets[0].Port
	if len(o.data) == 0 {
		o.at, o.data, o.reason = "host", nil, packet.NoFlow
	}
	return o
}

// toTask carries what the endpoint answers over the host, or returns nil.
func (r *rig) toTask(data []byte) []byte {
	b := packet.NewBatch()
	pkt.Of(b, data)
	r.back.hostInbound(r.host.host.Load(), b)
	return b.Packets[0].Data
}

func first(b *packet.Batch) []byte {
	if len(b.Packets) == 0 {
		return nil
	}
	return b.Packets[0].Data
}

func (r *rig) slot() *slot { return r.egress.liveSlots()[0] }

func (r *rig) egressDrops() (n [packet.NumReasons]uint64) {
	s := r.slot()
	for i := range n {
		n[i] = s.drops[i].Load() + r.egress.drops[i].Load()
	}
	return n
}

func (r *rig) hostDrops(port uint32) (n [packet.NumReasons]uint64) {
	t := r.host.host.Load().task(port)
	for i := range n {
		n[i] = r.host.drops[i].Load()
		if t != nil {
			n[i] += t.drops[i].Load()
		}
	}
	return n
}

func diff(a, b [packet.NumReasons]uint64) Reason {
	for i := range a {
		if b[i] != a[i] {
			return Reason(i)
		}
	}
	return packet.Undecided
}

// parse fails the test if data is no packet.
func parse(t testing.TB, data []byte) *packet.Parsed {
	t.Helper()
	p := new(packet.Parsed)
	if r := p.Parse(&packet.Packet{Data: data}); r != packet.OK {
		t.Fatalf("packet does not parse: %v", r)
	}
	return p
}

func ap(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
