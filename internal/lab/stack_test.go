package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// host is a real TCP/IP stack behind a node: what a task's or a server's
// kernel would be. It sends super-packets with partial checksums, as a kernel
// does on a TUN, and verifies every checksum it receives.
type host struct {
	t     testing.TB
	node  *Node
	stack *stack.Stack
}

const stackMTU = 1420

func newHost(t testing.TB, n *Node) *host {
	t.Helper()
	h := &host{t: t, node: n, stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})}
	link := channel.New(4096, stackMTU, "")
	link.SupportedGSOKind = stack.HostGSOSupported
	h.must(h.stack.CreateNIC(1, link))
	for _, a := range n.Addrs {
		proto, route := ipv4.ProtocolNumber, header.IPv4EmptySubnet
		if a.Is6() {
			proto, route = ipv6.ProtocolNumber, header.IPv6EmptySubnet
		}
		h.must(h.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
			Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}))
		h.stack.AddRoute(tcpip.Route{Destination: route, NIC: 1})
	}
	rto := tcpip.TCPMinRTOOption(20 * time.Millisecond)
	h.must(h.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rto))
	sack := tcpip.TCPSACKEnabled(true)
	h.must(h.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))

	n.Handle(func(p packet.Packet) {
		proto := ipv4.ProtocolNumber
		if p.Data[0]>>4 == 6 {
			proto = ipv6.ProtocolNumber
		}
		pb := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p.Data)})
		link.InjectInbound(proto, pb)
		pb.DecRef()
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for pb := link.ReadContext(ctx); pb != nil; pb = link.ReadContext(ctx) {
			n.SendPacket(fromStack(pb))
			pb.DecRef()
		}
	})
	t.Cleanup(func() {
		n.Handle(func(packet.Packet) {})
		cancel()
		wg.Wait()
		link.Close()
		h.stack.Destroy()
	})
	return h
}

// fromStack turns what a stack sends into what a TUN would hand over.
func fromStack(pb *stack.PacketBuffer) packet.Packet {
	v := pb.ToView()
	p := packet.Packet{Data: append([]byte(nil), v.AsSlice()...)}
	v.Release()
	g := pb.GSOOptions
	if !g.NeedsCsum {
		return p
	}
	p.GSO = packet.GSO{
		Partial: true, CsumStart: g.L3HdrLen, CsumOffset: g.CsumOffset,
		HdrLen: g.L3HdrLen + uint16(p.Data[g.L3HdrLen+12]>>4)*4,
	}
	if len(p.Data) > int(p.GSO.HdrLen)+int(g.MSS) {
		p.GSO.Size = g.MSS
		p.GSO.Type = packet.GSOTCP4
		if g.Type == stack.GSOTCPv6 {
			p.GSO.Type = packet.GSOTCP6
		}
	}
	return p
}

func (h *host) must(err tcpip.Error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %v", h.node.Name, err)
	}
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := ipv4.ProtocolNumber
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

// dial connects to addr.
func (h *host) dial(addr netip.AddrPort) net.Conn {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	to, proto := full(addr)
	c, err := gonet.DialContextTCP(ctx, h.stack, to, proto)
	if err != nil {
		h.t.Fatalf("%s to %v: %v", h.node.Name, addr, err)
	}
	h.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(3 * patience)) // never fails
	return c
}

// listen gives what connects to port of addr to serve, on goroutines that the
// test joins.
func (h *host) listen(addr netip.AddrPort, serve func(net.Conn)) {
	h.t.Helper()
	at, proto := full(addr)
	l, err := gonet.ListenTCP(h.stack, at, proto)
	if err != nil {
		h.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(h.t.Context(), func() { c.Close() })
				defer stop()
				serve(c)
			})
		}
	})
	h.t.Cleanup(func() {
		l.Shutdown()
		l.Close()
		wg.Wait()
	})
}

// exchange sends n bytes each way over c at once, checks both, and leaves the
// connection closed from both sides. The far end runs mirror.
func exchange(c net.Conn, n int) error {
	out, in := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(c, stream(1, n))
		out <- errors.Join(err, c.(*gonet.TCPConn).CloseWrite())
	}()
	go func() { in <- verify(c, 2, n) }()
	return errors.Join(<-out, <-in)
}

// mirror is the far end of exchange.
func mirror(c net.Conn, n int) error {
	out := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, stream(2, n))
		out <- errors.Join(err, c.(*gonet.TCPConn).CloseWrite())
	}()
	return errors.Join(verify(c, 1, n), <-out)
}

// stream is n bytes that look random but are the same for the same seed.
func stream(seed byte, n int) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), int64(n))
}

func verify(r io.Reader, seed byte, n int) error {
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, stream(seed, n)); err != nil {
		return err
	}
	m, err := io.Copy(got, r)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", m, n, err)
	}
	if m != int64(n) || string(got.Sum(nil)) != string(want.Sum(nil)) {
		return fmt.Errorf("%d bytes arrived for %d, or other ones than were sent", m, n)
	}
	return nil
}
