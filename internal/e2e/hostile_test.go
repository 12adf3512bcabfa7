//go:build netns && linux

package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

// drops waits until the machine has counted n packets under a reason.
func (w *world) drops(read func() map[string]uint64, reason string, n uint64) {
	w.t.Helper()
	eventually(w.t, 10*time.Second, func() error {
		if m := read(); m[reason] < n {
			return fmt.Errorf("%d packets under %q, want %d: %v", m[reason], reason, n, m)
		}
		return nil
	})
}

// TestZ1_SpoofedSourcesStayInside: a task with NET_RAW writes packets with
// other sources onto its interface.
func TestZ1_SpoofedSourcesStayInside(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{Tasks: 2}, Attach: true})
	check(t, w.reach(w.Tasks[0]))
	onSubnet := w.capture(w.server, netlab.ServerLink)
	onBridge := w.capture(w.Subnet, netlab.SubnetBr)
	s := must(raw(w.Tasks[0], "spill0"))(t)
	defer s.close()

	own, other := w.tasks[0].Inner, w.tasks[1].Inner
	const mark, good = "FORGED-SOURCE-8f1d", "HONEST-SOURCE-77ac"
	for i, srv := range families(w.server) {
		to := func(port int) netip.AddrPort { return netip.AddrPortFrom(srv, uint16(port)) }
		forged := []netip.Addr{other[i], w.Tasks[0].Addr4, w.out4, netlab.Gateway4, netip.MustParseAddr("8.8.8.8"),
			netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), srv}
		if srv.Is6() {
			forged = []netip.Addr{other[i], w.Tasks[0].Addr6, w.out6, netlab.Gateway6, netip.MustParseAddr("2001:4860::1"),
				netip.IPv6Unspecified(), netip.IPv6Loopback(), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1"), srv}
		}
		syn := func(h *layers.TCP) { h.SYN = true }
		for _, f := range forged {
			src := netip.AddrPortFrom(f, 4000)
			for _, p := range [][]byte{
				udpPacket(src, to(servers.EchoPort), mark), tcpPacket(src, to(servers.HTTPPort), syn, mark), echoPacket(f, srv, mark),
			} {
				if err := bothWays(w.Tasks[0], s, "spill0", p); err != nil {
					t.Errorf("%v to %v: %v", f, srv, err)
				}
			}
		}
		// The same with the task's own source must arrive, or the test
		// would show nothing.
		check(t, s.to(nil, udpPacket(netip.AddrPortFrom(own[i], 4000), to(servers.EchoPort), good)))
	}
	if err := onSubnet.Wait(netlab.Match{Has: []byte(good)}, 4, 10*time.Second); err != nil {
		t.Fatalf("honest packets of the same kind and their echoes: %v", err)
	}
	for name, c := range map[string]*netlab.Capture{"server": onSubnet, "bridge": onBridge} {
		if n := c.Count(netlab.Match{Has: []byte(mark)}); n > 0 {
			t.Errorf("%d packets with a forged source reached the %s", n, name)
		}
	}
	w.drops(func() map[string]uint64 { return w.task(0).Drops }, "spoofed-source", 20)
}

// TestZ15_TasksNeverReachEachOther tries by inner address, by the shared
// address, and with raw packets.
func TestZ15_TasksNeverReachEachOther(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{Tasks: 2}, Attach: true})
	a, b := w.Tasks[0], w.Tasks[1]
	check(t, w.reach(a))
	check(t, w.reach(b))
	victim := must(servers.Start(b.Do, nil))(t)
	defer victim.Close()
	// The victim keeps a UDP flow to the server, so that the shared address
	// has a port that leads to it.
	const flow, mark = "VICTIM-FLOW-51c0", "LATERAL-31ab"
	ports := w.openFlows(b, flow)
	seen := w.capture(b, "spill0")

	s := must(raw(a, "spill0"))(t)
	defer s.close()
	for i, shared := range []netip.Addr{w.out4, w.out6} {
		inner := w.tasks[1].Inner[i]
		for _, network := range []string{"tcp", "udp"} {
			for _, dst := range []netip.Addr{inner, shared} {
				if err := w.echo(a, network, dst); err == nil {
					t.Errorf("%s from one task to %v is answered", network, dst)
				}
			}
		}
		if err := w.refused(a, at(inner, 80)); err != nil {
			t.Errorf("inner address: %v", err)
		}
		syn := func(h *layers.TCP) { h.SYN = true }
		for _, src := range []netip.Addr{w.tasks[0].Inner[i], inner, shared, w.server.Addr4, w.server.Addr6} {
			if src.Is4() != inner.Is4() {
				continue
			}
			for _, dst := range []netip.Addr{inner, shared} {
				for _, p := range [][]byte{
					udpPacket(netip.AddrPortFrom(src, servers.EchoPort), netip.AddrPortFrom(dst, ports[i]), mark),
					udpPacket(netip.AddrPortFrom(src, servers.EchoPort), netip.AddrPortFrom(dst, servers.EchoPort), mark),
					tcpPacket(netip.AddrPortFrom(src, 4000), netip.AddrPortFrom(dst, servers.HTTPPort), syn, mark),
					echoPacket(src, dst, mark),
				} {
					if err := bothWays(a, s, "spill0", p); err != nil {
						t.Errorf("%v to %v: %v", src, dst, err)
					}
				}
			}
		}
	}
	// What is sent behind the last forged packet comes after it.
	check(t, w.reach(a))
	check(t, w.reach(b))
	if n := seen.Count(netlab.Match{Has: []byte(mark)}); n > 0 {
		t.Errorf("%d packets of one task reached the other", n)
	}
	if got := victim.SeenAny(); len(got) > 0 {
		t.Errorf("the other task's servers were reached from %v", got)
	}
}

// openFlows opens a UDP flow from a box to the first server in each family and
// returns the outside ports that the flows have.
func (w *world) openFlows(box *netlab.Box, text string) [2]uint16 {
	w.t.Helper()
	c := w.capture(w.server, netlab.ServerLink)
	var out [2]uint16
	for i, a := range families(w.server) {
		conn := must(w.dial(box, "udp", at(a, servers.EchoPort), time.Minute))(w.t)
		w.t.Cleanup(func() { conn.Close() })
		check(w.t, say(conn, text))
		eventually(w.t, 5*time.Second, func() error {
			for _, f := range c.Frames() {
				if src, dst, ok := udpPorts(f.Data, text); ok && dst == servers.EchoPort && is4(f.Data) == a.Is4() {
					out[i] = src
					return nil
				}
			}
			return fmt.Errorf("the flow to %v was not captured", a)
		})
	}
	check(w.t, c.Stop())
	return out
}

// TestZ4_TheEndpointItselfIsClosedFromInside: with rules that allow everything,
// no address of the engine, of the machines or of a metadata service is reached
// through the tunnel.
func TestZ4_TheEndpointItselfIsClosedFromInside(t *testing.T) {
	w := begin(t, scene{Pair: pairWith(anyPolicy), Attach: true})
	check(t, w.reach(w.Tasks[0]))
	// Somebody listens on every address of the egress machine.
	local := must(servers.Start(w.Egress[0].Do, nil))(t)
	defer local.Close()
	var wg sync.WaitGroup
	for _, a := range []netip.Addr{w.Egress[0].Addr4, w.Egress[0].Addr6, netlab.EgressSubnet4(0), netlab.EgressSubnet6(0), w.out4, w.out6,
		w.Host.Addr4, netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("224.0.0.1")} {
		for _, network := range []string{"tcp", "udp"} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				c, err := w.dial(w.Tasks[0], network, at(a, servers.EchoPort), 2*time.Second)
				if err != nil {
					return
				}
				defer c.Close()
				if err := say(c, "anybody?"); err == nil {
					t.Errorf("%s: %v answers", network, a)
				}
			}()
		}
	}
	wg.Wait()
	if got := local.SeenAny(); len(got) > 0 {
		t.Errorf("the egress machine's own servers were reached from %v", got)
	}
	if st := must(w.egress.Role(w.ctx, "egress"))(t); !st.Ready || st.Restarts != 0 {
		t.Errorf("the egress was disturbed: %+v", st)
	}
}
