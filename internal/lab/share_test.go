package lab

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// world is the lab most tests start from: one egress, one endpoint "e1" at
// 10.0.1.50, one host with tasks "t1", "t2", "t3", one server.
type world struct {
	*Lab
	subnet *Subnet
	egress *Machine
	host   *Machine
	server *Node
	t      []*Node
}

var (
	outside = [7]netip.Addr{4: netip.MustParseAddr("10.0.1.50"), 6: netip.MustParseAddr("fd00:1::50")}
	v4v6    = []int{4, 6}
)

func newWorld(t testing.TB) *world {
	l := New(t)
	w := &world{Lab: l, subnet: l.Subnet("a", "10.0.1.0/24", "fd00:1::/64")}
	w.server = w.subnet.Server("db", "10.0.1.10", "fd00:1::10")
	w.egress = l.Egress("egress-1")
	w.host = l.Host("host-1")
	w.endpoint()
	for i := range 3 {
		w.task(i + 1)
	}
	return w
}

func (w *world) endpoint() {
	w.Endpoint(Endpoint{
		ID: "e1", Subnet: w.subnet, Owner: w.egress, V4: outside[4].String(), V6: outside[6].String(),
		Lend: map[string][]string{"host-1": {"100.112.0.0/24", "fd53:7069:6c6c::/64"}},
	})
}

func (w *world) task(n int) *Node {
	t := w.host.Attach(fmt.Sprintf("t%d", n), "e1", fmt.Sprintf("100.112.0.%d", n+1), fmt.Sprintf("fd53:7069:6c6c::%d", n+1))
	w.t = append(w.t, t)
	return t
}

func allow(protocol string, port int) api.Rule {
	return api.Rule{Protocol: protocol, FromPort: port, ToPort: port, CIDR: netip.MustParsePrefix("0.0.0.0/0")}
}

// ping sends a datagram to an echo server and waits for it to come back: what
// was sent before it on the same way has been decided then.
func ping(from, to *Node, port uint16) {
	from.lab.TB.Helper()
	from.Send(pkt.UDP(from.V4(port), to.V4(7), []byte("ping")))
	if g := from.Recv(); g.From != to.V4(7) || string(g.Body()) != "ping" {
		from.lab.TB.Fatalf("%s got a packet from %v, want its echo of %v", from.Name, g.From, to.V4(7))
	}
}

// TestS33_TasksShareOneAddress: three tasks use the same port to the same
// server. It sees one address and three ports, and each gets its own answer.
func TestS33_TasksShareOneAddress(t *testing.T) {
	w := newWorld(t)
	for _, v := range v4v6 {
		ports := make(map[uint16]bool)
		for i, task := range w.t {
			body := fmt.Sprintf("from %d", i)
			task.Send(pkt.UDP(task.At(v, 4000), w.server.At(v, 53), []byte(body)))
			g := w.server.Recv()
			if g.From.Addr() != outside[v] || string(g.Body()) != body {
				t.Fatalf("the server got %q from %v, want it from %v", g.Body(), g.From, outside[v])
			}
			if ports[g.SrcPort] {
				t.Fatalf("outside port %d is used by two tasks to one server", g.SrcPort)
			}
			ports[g.SrcPort] = true
			w.server.Send(pkt.UDP(g.To, g.From, []byte("to "+body)))
			a := task.Recv()
			if string(a.Body()) != "to "+body || a.To != task.At(v, 4000) || a.From != w.server.At(v, 53) {
				t.Fatalf("%s got %q from %v to %v", task.Name, a.Body(), a.From, a.To)
			}
		}
	}
	for _, task := range w.t {
		task.MustBeQuiet("it is another task's")
	}
}

// TestS34_EndpointsAreKeptApart: two endpoints on one egress differ in
// address, rules and tasks, and no packet finds its way between them.
func TestS34_EndpointsAreKeptApart(t *testing.T) {
	w := newWorld(t)
	w.Endpoint(Endpoint{
		ID: "e2", Subnet: w.subnet, Owner: w.egress, V4: "10.0.1.51", Allow: []api.Rule{allow("udp", 7)},
		Lend: map[string][]string{"host-1": {"100.112.1.0/24"}},
	})
	w.Rules("e1", allow("udp", 53), allow("udp", 7))
	one, two := w.t[0], w.host.Attach("other", "e2", "100.112.1.2")

	// Each has the address and the rules of its own endpoint.
	one.Send(pkt.UDP(one.V4(4000), w.server.V4(53), []byte("dns")))
	first := w.server.Recv()
	if first.From.Addr() != outside[4] {
		t.Fatalf("e1 shows as %v", first.From)
	}
	two.Send(pkt.UDP(two.V4(4000), w.server.V4(53), []byte("dns")))
	if g := two.Recv(); !g.IsICMPError() {
		t.Fatalf("the task of e2 got protocol %d, want a refusal", g.Proto)
	}
	w.egress.WaitDropped(packet.DeniedByPolicy, 1)
	two.Send(pkt.UDP(two.V4(4000), w.server.V4(7), []byte("echo")))
	second := w.server.Recv()
	if second.From.Addr() != netip.MustParseAddr("10.0.1.51") {
		t.Fatalf("e2 shows as %v", second.From)
	}

	// What answers one endpoint's flow does not pass by the other's address.
	stray := netip.AddrPortFrom(second.From.Addr(), first.From.Port())
	w.server.Send(pkt.UDP(w.server.V4(53), stray, []byte("stray")))
	w.egress.WaitDropped(packet.Unsolicited, 1)

	// Tasks reach neither each other nor each other's address.
	one.Send(pkt.UDP(one.V4(4000), two.V4(4000), nil))
	w.egress.WaitDropped(packet.TaskToTask, 1)
	one.Send(pkt.UDP(one.V4(4000), second.From, nil))
	w.egress.WaitDropped(packet.Hairpin, 1)
	for range 2 {
		if g := one.Recv(); !g.IsICMPError() {
			t.Fatalf("got protocol %d, want a refusal", g.Proto)
		}
	}
	w.server.Echo()
	ping(one, w.server, 4001)
	ping(two, w.server, 4001)
	one.MustBeQuiet("nothing else was for it")
	two.MustBeQuiet("nothing else was for it")
}

// TestZ1_HostsUseOnlyTheirOwnPrefixes: two hosts share an endpoint; each is
// answered, and neither can speak for the other.
func TestZ1_HostsUseOnlyTheirOwnPrefixes(t *testing.T) {
	w := newWorld(t)
	h2 := w.Host("host-2")
	w.Change(func(s *api.Snapshot) {
		a := &s.Endpoints[0].Addresses[0]
		a.Prefixes = append(a.Prefixes, api.Delegation{Machine: "host-2", Prefix: netip.MustParsePrefix("100.112.2.0/24")})
	})
	far := h2.Attach("far", "e1", "100.112.2.2")
	w.server.Echo()
	for range 3 {
		ping(w.t[0], w.server, 4000)
		ping(far, w.server, 4000)
	}
	// host-2 has been taken over: it sends what a task of host-1 would.
	forged := pkt.UDP(w.t[0].V4(4000), w.server.V4(7), []byte("forged"))
	w.Wire.carry("host-2", "egress-1", forged)
	ping(far, w.server, 4001)
	w.t[0].MustBeQuiet("the answer to another host's packet")
	if got := w.Wire.Connected("egress-1", "").Forged(); got != 1 {
		t.Errorf("%d packets were refused for their source, want 1", got)
	}
}

// TestStockClientIsATask: a WireGuard client without spillway uses the
// endpoint like any task, and like any task sees no other.
func TestStockClientIsATask(t *testing.T) {
	w := newWorld(t)
	c := w.Client("laptop", "e1", "100.112.9.9", "fd53:7069:6c6c:9::9")
	w.server.Echo()
	for _, v := range v4v6 {
		c.Send(pkt.UDP(c.At(v, 4000), w.server.At(v, 7), []byte("hello")))
		if g := c.Recv(); string(g.Body()) != "hello" || g.To != c.At(v, 4000) {
			t.Fatalf("the client got %q to %v", g.Body(), g.To)
		}
	}
	c.Send(pkt.UDP(c.V4(4000), w.t[0].V4(4000), nil))
	g := c.Recv()
	if !g.IsICMPError() || g.From.Addr() != netip.MustParseAddr("100.112.0.1") {
		t.Errorf("the client is refused by %v, want an ICMP error of its gateway", g.From)
	}
	c.Send(pkt.TCP(c.V4(4000), w.server.V4(80), packet.ACK, 1, 7, nil)) // T4, with no host before it
	if g := c.Recv(); g.Flags&packet.RST == 0 || g.Seq != 7 {
		t.Errorf("a segment without a flow is answered with flags %#x seq %d", g.Flags, g.Seq)
	}
	ping(w.t[0], w.server, 4000)
	w.t[0].MustBeQuiet("it came from the client")
}

// TestPeersChangeLive: machines come and go while others' packets flow, and
// none of those is lost.
func TestPeersChangeLive(t *testing.T) {
	w := newWorld(t)
	w.server.Echo()
	stop := make(chan struct{})
	var rounds atomic.Int64
	var wg sync.WaitGroup
	echoed := make(chan struct{}, 1)
	w.t[0].Handle(func(packet.Packet) { echoed <- struct{}{} })
	wg.Go(func() { // one datagram under way at a time: a lost one ends it
		for {
			w.t[0].Send(pkt.UDP(w.t[0].V4(4000), w.server.V4(7), []byte("steady")))
			select {
			case <-echoed:
				rounds.Add(1)
			case <-stop:
				return
			}
		}
	})
	for i := range 30 {
		before := rounds.Load()
		w.Client(fmt.Sprintf("client-%d", i), "e1", fmt.Sprintf("100.112.7.%d", i+1))
		w.Eventually("the steady flow goes on", func() bool { return rounds.Load() >= before+3 })
		if i%3 == 2 { // and one goes
			w.Change(func(s *api.Snapshot) {
				a := &s.Endpoints[0].Addresses[0]
				a.Prefixes = a.Prefixes[:len(a.Prefixes)-1]
				s.Machines = s.Machines[:len(s.Machines)-1]
			})
		}
		w.Eventually("the steady flow goes on", func() bool { return rounds.Load() >= before+6 })
	}
	close(stop)
	wg.Wait()
	for _, m := range []*Machine{w.egress, w.host} {
		if d := m.Drops(); len(d) != 0 {
			t.Errorf("%s refused %v while peers changed", m.Name, d)
		}
	}
	if n := len(w.egress.Flows()); n != 1 {
		t.Errorf("%d flows, want the one", n)
	}
}

// TestQ9_PolicySwapUnderLoad: rules change two hundred times while flows
// begin. A port that is always allowed always passes, one that never is never
// does, and the two that change follow each change at once.
func TestQ9_PolicySwapUnderLoad(t *testing.T) {
	const always, never, even, odd = 1000, 1001, 1002, 1003
	w := newWorld(t)
	w.Rules("e1", allow("udp", always), allow("udp", 7), allow("udp", even))
	var passed [4]atomic.Int64
	w.server.Handle(func(p packet.Packet) {
		if g := parsed(p); g.DstPort >= always && g.DstPort <= odd {
			passed[g.DstPort-always].Add(1)
		}
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var begun atomic.Int64
	wg.Go(func() {
		for port := uint16(10000); port < 50000; port++ {
			w.t[1].Send(pkt.UDP(w.t[1].V4(port), w.server.V4(always), nil))
			w.t[1].Send(pkt.UDP(w.t[1].V4(port), w.server.V4(never), nil))
			n := begun.Add(1)
			for passed[0].Load() < n { // a flow at a time: no queue overflows
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	})
	denied := uint64(0)
	for i := range 200 {
		now, then := even, odd
		if i%2 == 0 {
			now, then = odd, even
		}
		w.Rules("e1", allow("udp", always), allow("udp", now))
		before := [2]int64{passed[now-always].Load(), passed[then-always].Load()}
		sport := uint16(2000 + i)
		w.t[0].Send(pkt.UDP(w.t[0].V4(sport), w.server.V4(uint16(then)), nil))
		w.t[0].Send(pkt.UDP(w.t[0].V4(sport), w.server.V4(uint16(now)), nil))
		if g := w.t[0].Recv(); !g.IsICMPError() {
			t.Fatalf("round %d: got protocol %d, want a refusal", i, g.Proto)
		}
		denied++
		w.Eventually("the newly allowed port passes", func() bool { return passed[now-always].Load() == before[0]+1 })
		if n := passed[then-always].Load(); n != before[1] {
			t.Fatalf("round %d: port %d passes though it was taken away before", i, then)
		}
	}
	w.Eventually("flows begin meanwhile", func() bool { return passed[0].Load() >= 100 })
	close(stop)
	wg.Wait()
	if n := passed[1].Load(); n != 0 {
		t.Errorf("%d packets to a port that no version allowed passed", n)
	}
	if got, want := passed[0].Load(), begun.Load(); got < want-1 {
		t.Errorf("%d of %d flows to a port that every version allows passed", got, want)
	}
	w.egress.WaitDropped(packet.DeniedByPolicy, denied+uint64(begun.Load()-1))
}

// TestDetachedTaskIsGone: its answers find nobody, its packets no way; the
// others do not notice.
func TestDetachedTaskIsGone(t *testing.T) {
	w := newWorld(t)
	gone := w.t[0]
	gone.Send(pkt.UDP(gone.V4(4000), w.server.V4(53), []byte("q")))
	g := w.server.Recv()
	w.t[1].Send(pkt.UDP(w.t[1].V4(4000), w.server.V4(53), []byte("q")))
	other := w.server.Recv()

	w.host.Detach("t1")
	w.server.Send(pkt.UDP(g.To, g.From, []byte("late")))
	w.host.WaitDropped(packet.Unsolicited, 1)
	gone.Send(pkt.UDP(gone.V4(4000), w.server.V4(53), []byte("q2")))
	w.host.WaitDropped(packet.NoRoute, 1)

	w.server.Send(pkt.UDP(other.To, other.From, []byte("a")))
	if a := w.t[1].Recv(); string(a.Body()) != "a" {
		t.Errorf("another task got %q, want its answer", a.Body())
	}
	gone.MustBeQuiet("the task has been detached")
	w.server.MustBeQuiet("the task has been detached")

	// Whoever takes its place gets nothing of its flows.
	heir := w.host.Attach("heir", "e1", "100.112.0.77")
	w.server.Send(pkt.UDP(g.To, g.From, []byte("late")))
	w.host.WaitDropped(packet.Unsolicited, 2)
	heir.MustBeQuiet("it was for the task before it")
}

// TestTwoWorldsDoNotMeet: two sets of engines with the same names and
// addresses in one process share nothing.
func TestTwoWorldsDoNotMeet(t *testing.T) {
	one, two := newWorld(t), newWorld(t)
	one.server.Echo()
	ping(one.t[0], one.server, 4000)
	if n := len(two.egress.Flows()); n != 0 {
		t.Errorf("%d flows of another world", n)
	}
	two.Rules("e1", allow("udp", 9))
	ping(one.t[1], one.server, 4000)
	two.t[0].Send(pkt.UDP(two.t[0].V4(4000), two.server.V4(7), []byte("ping")))
	two.egress.WaitDropped(packet.DeniedByPolicy, 1)
	if d := one.egress.Drops(); len(d) != 0 {
		t.Errorf("drops of another world: %v", d)
	}
	two.egress.Stop()
	ping(one.t[0], one.server, 4001)
}

// TestRunLeavesNothing: machines start and stop, in the middle of traffic, and
// leave no goroutine. New checks that for every test; here it is the point.
func TestRunLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.server.Echo()
	for i := range 10 {
		ping(w.t[0], w.server, uint16(4000+i))
		for range 50 {
			w.t[1].Send(pkt.UDP(w.t[1].V4(4000), w.server.V4(9), []byte("on its way")))
		}
		w.egress.Restart()
		w.host.Restart()
	}
}

// parsed is what p holds; the zero Parsed if it is no packet.
func parsed(p packet.Packet) (h packet.Parsed) {
	_ = h.Parse(&p) // a packet that does not parse has no port that is looked for
	return h
}
