package lab

import (
	"testing"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// smallWorld is newWorld with another egress.
func smallWorld(t testing.TB, config func(*engine.Config)) *world {
	l := New(t)
	w := &world{Lab: l, subnet: l.Subnet("a", "10.0.1.0/24", "fd00:1::/64")}
	w.server = w.subnet.Server("db", "10.0.1.10", "fd00:1::10")
	w.egress = l.Egress("egress-1", config)
	w.host = l.Host("host-1")
	w.endpoint()
	w.task(1)
	w.task(2)
	return w
}

// wantUnreachable takes the refusal of a full table or pool: the task is told
// "host unreachable" at once (J5).
func wantUnreachable(t *testing.T, n *Node) {
	t.Helper()
	g := n.Recv()
	if g.Proto != packet.ProtoICMP || g.Type != 3 || g.Code != 1 {
		t.Fatalf("%s got protocol %d type %d code %d, want host unreachable", n.Name, g.Proto, g.Type, g.Code)
	}
}

// TestK17_TableFull: with no room left, live flows go on, new ones are refused
// aloud, and the first place that gets free is used again.
func TestK17_TableFull(t *testing.T) {
	const room = 64
	w := smallWorld(t, func(c *engine.Config) { c.MaxFlows, c.MaxFlowsPerTask = room, room })
	w.server.Echo()
	for i := range room {
		ping(w.t[i%2], w.server, uint16(4000+i))
	}
	w.t[0].Send(pkt.UDP(w.t[0].V4(5000), w.server.V4(7), nil))
	wantUnreachable(t, w.t[0])
	if n := w.egress.Dropped(packet.TableFull); n != 1 {
		t.Errorf("drops are %v, want one for the full table", w.egress.Drops())
	}
	for i := range room {
		ping(w.t[i%2], w.server, uint16(4000+i))
	}
	// All but the flows of the second task idle out.
	w.Clock.Advance(200 * time.Second)
	for i := 1; i < room; i += 2 {
		ping(w.t[1], w.server, uint16(4000+i))
	}
	w.Clock.Advance(150 * time.Second)
	w.Eventually("idle flows end", func() bool { return len(w.egress.Flows()) == room/2 })
	ping(w.t[0], w.server, 5000)
	ping(w.t[1], w.server, 4001)
}

// TestK17_PortsExhausted: with a pool of sixteen ports, flows to one
// destination share it without ever sharing a port; who comes too late is told
// so, and other destinations are not touched (J1, J9).
func TestK17_PortsExhausted(t *testing.T) {
	const pool = 16
	w := smallWorld(t, func(c *engine.Config) {
		for p := 1024; p <= 65535-pool; p++ {
			c.ReservedPorts = append(c.ReservedPorts, uint16(p))
		}
	})
	other := w.subnet.Server("other", "10.0.1.11")
	used := make(map[uint16]*Node)
	refused := 0
	for i := range 2 * pool {
		task := w.t[i%2]
		before := w.egress.Drops()
		task.Send(pkt.UDP(task.V4(uint16(4000+i)), w.server.V4(53), nil))
		w.Eventually("the datagram is decided", func() bool {
			return len(w.server.inbox) > 0 || total(w.egress.Drops()) > total(before)
		})
		if len(w.server.inbox) == 0 {
			wantUnreachable(t, task)
			refused++
			continue
		}
		g := w.server.Recv()
		if g.SrcPort <= 65535-pool {
			t.Fatalf("outside port %d is a reserved one", g.SrcPort)
		}
		if used[g.SrcPort] != nil {
			t.Fatalf("outside port %d is used twice towards one server", g.SrcPort)
		}
		used[g.SrcPort] = task
	}
	if len(used) != pool || refused != pool {
		t.Errorf("%d flows passed and %d were refused, want %d each", len(used), refused, pool)
	}
	d := w.egress.Drops()
	if n := d[packet.PortsExhausted.String()] + d[packet.TaskPortLimit.String()]; n != pool || total(d) != pool {
		t.Errorf("drops are %v, want %d for want of ports", d, pool)
	}
	// The same ports serve another destination.
	other.Echo()
	ping(w.t[0], other, 4900)
	// Live flows are answered, each to its own task.
	for port, task := range used {
		w.server.Send(pkt.UDP(w.server.V4(53), outsideAt(port), nil))
		if g := task.Recv(); g.From != w.server.V4(53) {
			t.Fatalf("%s got a packet from %v", task.Name, g.From)
		}
	}
	// A port that gets free is given to the next.
	w.Clock.Advance(350 * time.Second)
	w.Eventually("idle flows end", func() bool { return len(w.egress.Flows()) == 0 })
	w.t[1].Send(pkt.UDP(w.t[1].V4(6000), w.server.V4(53), nil))
	w.server.Recv()
}

func total(drops map[string]uint64) (n uint64) {
	for _, d := range drops {
		n += d
	}
	return n
}
