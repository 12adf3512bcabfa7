package lab

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// patience is how long a test waits for what must happen, in real time.
const patience = 20 * time.Second

// Node is what stands at the edge of a lab: a task, a server on a subnet, or a
// stock WireGuard client. A test sends packets from it and takes what arrives,
// or sets a handler that lives by itself.
type Node struct {
	Name  string
	Addrs []netip.Addr // IPv4 first, if any

	lab  *Lab
	emit func(packet.Packet)

	mu      sync.Mutex
	handler func(packet.Packet) // guarded by mu; nil: packets go to inbox
	inbox   chan []byte
}

func (l *Lab) newNode(name string, addrs []netip.Addr) *Node {
	return &Node{Name: name, Addrs: addrs, lab: l, inbox: make(chan []byte, 4096)}
}

// Send sends one packet.
func (n *Node) Send(data []byte) { n.SendPacket(packet.Packet{Data: data}) }

// SendPacket sends a packet with its offload state.
func (n *Node) SendPacket(p packet.Packet) {
	n.lab.Trace.add(n.Name+" out", p, "")
	n.emit(p)
}

// Handle makes f take what arrives from now on. f may send from the node; it
// must not keep the packet's bytes, and not wait.
func (n *Node) Handle(f func(packet.Packet)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handler = f
}

// deliver gives the node a packet.
// borrowed: p's bytes until it returns.
func (n *Node) deliver(p packet.Packet) {
	n.lab.Trace.add(n.Name+" in", p, "")
	n.mu.Lock()
	f := n.handler
	n.mu.Unlock()
	if f != nil {
		f(p)
		return
	}
	select {
	case n.inbox <- slices.Clone(p.Data):
	default:
		n.lab.Trace.add(n.Name+" in", p, "lost: inbox full")
	}
}

// Got is a packet that arrived.
type Got struct {
	packet.Parsed
	From, To netip.AddrPort
}

// Body is what follows the transport header.
func (g *Got) Body() []byte { return g.Data[g.Payload:] }

// Recv waits for the next packet. It fails the test if none comes, or one
// whose lengths or checksums are wrong.
func (n *Node) Recv() *Got {
	n.lab.TB.Helper()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case data := <-n.inbox:
		g := n.lab.got(data)
		if err := pkt.Check(data); err != nil {
			n.lab.TB.Fatalf("%s got a packet that is wrong: %v", n.Name, err)
		}
		return g
	case <-t.C:
		n.lab.noteDrops()
		n.lab.TB.Fatalf("%s waits in vain for a packet", n.Name)
	}
	return nil
}

// got takes a packet apart. It fails the test if it cannot.
func (l *Lab) got(data []byte) *Got {
	l.TB.Helper()
	g := new(Got)
	if r := g.Parse(&packet.Packet{Data: data}); r != packet.OK {
		l.TB.Fatalf("a packet that does not parse arrived: %v", r)
	}
	g.From = netip.AddrPortFrom(packet.ToNetip(g.Src), g.SrcPort)
	g.To = netip.AddrPortFrom(packet.ToNetip(g.Dst), g.DstPort)
	return g
}

// MustBeQuiet fails the test if a packet arrived that was not taken. Whoever
// calls it has made sure that what was sent was also decided.
func (n *Node) MustBeQuiet(why string) {
	n.lab.TB.Helper()
	select {
	case data := <-n.inbox:
		g := n.lab.got(data)
		n.lab.TB.Fatalf("%s got a packet from %v to %v: %s", n.Name, g.From, g.To, why)
	default:
	}
}

// Addr is the node's address of the same family as like.
func (n *Node) Addr(like netip.Addr) netip.Addr {
	i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() == like.Is4() })
	return n.Addrs[i]
}

// V4 is the node's IPv4 address and a port.
func (n *Node) V4(port uint16) netip.AddrPort { return netip.AddrPortFrom(n.Addrs[0], port) }

// At is the node's address of IP version v and a port.
func (n *Node) At(v int, port uint16) netip.AddrPort {
	if v == 6 {
		return netip.AddrPortFrom(n.Addrs[len(n.Addrs)-1], port)
	}
	return n.V4(port)
}

// Echo makes the node answer: a datagram with its own payload, a SYN with a
// SYN-ACK, data with an ACK, an echo request with its reply.
func (n *Node) Echo() {
	n.Handle(func(pk packet.Packet) {
		var h packet.Parsed
		if h.Parse(&pk) != packet.OK || !h.Transport {
			return
		}
		from := netip.AddrPortFrom(packet.ToNetip(h.Src), h.SrcPort)
		to := netip.AddrPortFrom(packet.ToNetip(h.Dst), h.DstPort)
		body := slices.Clone(h.Data[h.Payload:])
		switch {
		case h.Proto == packet.ProtoUDP:
			n.Send(pkt.UDP(to, from, body))
		case h.Proto == packet.ProtoTCP && h.Flags&packet.SYN != 0:
			n.Send(pkt.TCP(to, from, packet.SYN|packet.ACK, h.Seq^0x5a5a5a5a, h.Seq+1, nil))
		case h.Proto == packet.ProtoTCP && len(body) > 0:
			n.Send(pkt.TCP(to, from, packet.ACK, h.Ack, h.Seq+uint32(len(body)), nil))
		case h.IsEchoRequest():
			n.Send(pkt.Echo(to.Addr(), from.Addr(), h.SrcPort, 1, pkt.Reply, body))
		}
	})
}
