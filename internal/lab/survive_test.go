package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

func outsideAt(port uint16) netip.AddrPort { return netip.AddrPortFrom(outside[4], port) }

// tables returns a directory for flow tables and the setting that uses it.
func tables(t testing.TB) (string, func(*engine.Config)) {
	dir := t.TempDir()
	return dir, func(c *engine.Config) { c.TableDir = dir }
}

// talk sends a line over c and wants it back.
func talk(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := c.Write([]byte(line)); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != line {
		t.Fatalf("%q came back as %q: %v", line, got, err)
	}
}

func echoConn(c net.Conn) { _, _ = io.Copy(c, c) } // ends with the connection

// restarts runs disturb between the lines of live TCP connections, of both
// families, and wants them to go on: same outside port, no reset. Datagram
// flows keep their port, too.
func restarts(t *testing.T, w *world, disturb func()) {
	task, server := newHost(t, w.t[0]), newHost(t, w.server)
	var conns []net.Conn
	for _, v := range v4v6 {
		at := w.server.At(v, 5432)
		server.listen(at, echoConn)
		for range 4 {
			conns = append(conns, task.dial(at))
		}
	}
	udp := w.subnet.Server("dns", "10.0.1.12")
	w.t[1].Send(pkt.UDP(w.t[1].V4(4000), udp.V4(53), []byte("q")))
	first := udp.Recv()
	for i, c := range conns {
		talk(t, c, fmt.Sprintf("before %d", i))
	}
	before := outsides(w)
	for round := range 3 {
		disturb()
		// The answer that was on its way, as if the question had been sent now.
		w.t[1].Send(pkt.UDP(w.t[1].V4(4000), udp.V4(53), []byte("q")))
		if g := udp.Recv(); g.From != first.From {
			t.Errorf("round %d: the datagram flow moved from %v to %v", round, first.From, g.From)
		}
		udp.Send(pkt.UDP(udp.V4(53), first.From, []byte("a")))
		if g := w.t[1].Recv(); string(g.Body()) != "a" {
			t.Errorf("round %d: got %q for the answer", round, g.Body())
		}
		for i, c := range conns {
			talk(t, c, fmt.Sprintf("round %d, %d", round, i))
		}
	}
	if after := outsides(w); !slices.Equal(before, after) {
		t.Errorf("flows were\n%v, now\n%v", before, after)
	}
	if n := w.Trace.Resets(); n != 0 {
		t.Errorf("%d resets were seen", n)
	}
}

// outsides is the flows of the egress with their outside ports, in order.
func outsides(w *world) []string {
	var out []string
	for _, f := range w.egress.Flows() {
		out = append(out, fmt.Sprintf("%s %v %v %v", f.Protocol, f.Inner, f.Outside, f.Remote))
	}
	slices.Sort(out)
	return out
}

// TestK1_EgressRestartKeepsFlows: an egress that ended in order, or died, goes
// on with the flows in its table file.
func TestK1_EgressRestartKeepsFlows(t *testing.T) {
	t.Run("stopped", func(t *testing.T) {
		_, config := tables(t)
		w := smallWorld(t, config)
		restarts(t, w, w.egress.Restart)
	})
	t.Run("killed", func(t *testing.T) {
		dir, config := tables(t)
		w := smallWorld(t, config)
		restarts(t, w, func() {
			w.egress.Crash(dir)
			dir = w.egress.tables
		})
	})
}

// TestK24_HostRestartResetsNobody: without any state of its own a restarted
// host lets live flows go on from their task's next segment; with a table file
// also from the server's.
func TestK24_HostRestartResetsNobody(t *testing.T) {
	t.Run("no state", func(t *testing.T) {
		w := smallWorld(t, func(*engine.Config) {})
		restarts(t, w, w.host.Restart)
	})
	t.Run("table file", func(t *testing.T) {
		_, config := tables(t)
		w := smallWorld(t, func(*engine.Config) {})
		w.host.Stop()
		w.host.config = config
		w.host.Start()
		restarts(t, w, w.host.Restart)
		// The server speaks first: the host knows the flow.
		dns := w.subnet.Server("dns-2", "10.0.1.13")
		w.t[1].Send(pkt.UDP(w.t[1].V4(5000), dns.V4(54), nil))
		g := dns.Recv()
		w.host.Restart()
		dns.Send(pkt.UDP(g.To, g.From, []byte("first")))
		if a := w.t[1].Recv(); string(a.Body()) != "first" {
			t.Errorf("got %q", a.Body())
		}
	})
}

// TestT9_EgressWithoutItsTableResetsOnce: where the table was lost, a task's
// next segment is answered with a reset, at once; nobody hangs.
func TestT9_EgressWithoutItsTableResetsOnce(t *testing.T) {
	w := newWorld(t)
	w.server.Echo()
	task := w.t[0]
	task.Send(pkt.TCP(task.V4(4000), w.server.V4(80), packet.SYN, 1000, 0, nil))
	synAck := task.Recv()
	task.Send(pkt.TCP(task.V4(4000), w.server.V4(80), packet.ACK, 1001, synAck.Seq+1, []byte("a")))
	ack := task.Recv()
	w.egress.Restart()
	task.Send(pkt.TCP(task.V4(4000), w.server.V4(80), packet.ACK, 1002, ack.Seq, []byte("b")))
	if g := task.Recv(); g.Flags&packet.RST == 0 || g.Seq != ack.Seq {
		t.Fatalf("flags %#x seq %d, want a reset at %d", g.Flags, g.Seq, ack.Seq)
	}
	w.egress.WaitDropped(packet.NoFlow, 1)
}

// TestK7_FlowsOutliveTheWire: the wire is cut and mended; what was sent
// meanwhile is lost, the flows are not.
func TestK7_FlowsOutliveTheWire(t *testing.T) {
	w := newWorld(t)
	task, server := newHost(t, w.t[0]), newHost(t, w.server)
	server.listen(w.server.V4(5432), echoConn)
	c := task.dial(w.server.V4(5432))
	talk(t, c, "before")
	w.Wire.Set("host-1", "egress-1", Weather{Down: true})
	if _, err := c.Write([]byte("into the dark")); err != nil {
		t.Fatal(err)
	}
	w.Wire.Set("host-1", "egress-1", Weather{})
	got := make([]byte, 13)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "into the dark" {
		t.Fatalf("got %q: %v", got, err)
	}
	talk(t, c, "after")
	if n := w.Trace.Resets(); n != 0 {
		t.Errorf("%d resets were seen", n)
	}
}

// TestFlowsAreReadWhileTheEgressEnds: whoever lists flows just then gets fewer
// of them, and nothing worse: tables lie in memory that goes with the engine.
func TestFlowsAreReadWhileTheEgressEnds(t *testing.T) {
	w := newWorld(t)
	for i := range 100 {
		w.t[0].Send(pkt.UDP(w.t[0].V4(uint16(4000+i)), w.server.V4(53), nil))
		w.server.Recv()
	}
	n := 0
	for range w.egress.Engine.Flows() {
		if n++; n == 10 {
			w.egress.Stop()
		}
	}
	if n < 10 || n >= 100 {
		t.Errorf("%d flows were listed, want those until the end", n)
	}
}
