//go:build netns && linux

package hostnet_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	netlab.Reexec()
	goleak.VerifyTestMain(m)
}

var (
	inner4 = netip.MustParseAddr("100.112.0.7")
	inner6 = netip.MustParseAddr("fd64:5350::7")
)

func newLab(t *testing.T, cfg netlab.Config) *netlab.Lab {
	t.Helper()
	cfg.V6 = true
	l, err := netlab.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

func attachConfig(l *netlab.Lab) hostnet.AttachConfig {
	return hostnet.AttachConfig{NS: l.Tasks[0].NS, Host: l.Host.NS, Addr4: inner4, Addr6: inner6}
}

// prepare attaches the first task without its tunnel.
func prepare(t *testing.T, cfg hostnet.AttachConfig) *hostnet.Attachment {
	t.Helper()
	a, err := hostnet.Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

// attach attaches the first task and gives its tunnel.
func attach(t *testing.T, cfg hostnet.AttachConfig) (*hostnet.Attachment, *os.File) {
	t.Helper()
	a := prepare(t, cfg)
	tun := openTUN(t, cfg.NS, "spill0")
	if err := a.Configure(); err != nil {
		t.Fatal(err)
	}
	return a, tun
}

// shout makes the box try everything an application would to reach the
// client in clear: both families, TCP, UDP and ICMP, unbound and bound to the
// box's own primary address.
func shout(t *testing.T, b *netlab.Box) {
	t.Helper()
	for _, c := range []struct{ net, from, to string }{
		{"tcp", "", net.JoinHostPort(netlab.Client4.String(), "80")},
		{"tcp", "", net.JoinHostPort(netlab.Client6.String(), "80")},
		{"tcp", b.Addr4.String(), net.JoinHostPort(netlab.Client4.String(), "80")},
		{"tcp", b.Addr6.String(), net.JoinHostPort(netlab.Client6.String(), "80")},
		{"udp", "", net.JoinHostPort(netlab.Client4.String(), "53")},
		{"udp", "", net.JoinHostPort(netlab.Client6.String(), "53")},
		{"udp", b.Addr4.String(), net.JoinHostPort(netlab.Client4.String(), "53")},
		{"udp", b.Addr6.String(), net.JoinHostPort(netlab.Client6.String(), "53")},
		{"ip4:icmp", b.Addr4.String(), netlab.Client4.String()},
		{"ip6:ipv6-icmp", b.Addr6.String(), netlab.Client6.String()},
		{"ip4:47", b.Addr4.String(), netlab.Client4.String()},
	} {
		b.Do(func() error {
			d := net.Dialer{Timeout: 60 * time.Millisecond}
			if c.from != "" {
				ip := net.ParseIP(c.from)
				switch c.net {
				case "tcp":
					d.LocalAddr = &net.TCPAddr{IP: ip}
				case "udp":
					d.LocalAddr = &net.UDPAddr{IP: ip}
				default:
					d.LocalAddr = &net.IPAddr{IP: ip}
				}
			}
			conn, err := d.Dial(c.net, c.to)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte{128, 0, 0, 0, 0, 1, 0, 1, 's', 'e', 'c', 'r', 'e', 't'})
			return err
		})
	}
}

// clear counts what a capture on the provider's side shows from the task to
// the client: nothing may.
func clear(c *netlab.Capture) int {
	return c.Count(netlab.Match{IP: true, Dst: netip.PrefixFrom(netlab.Client4, 32)}) +
		c.Count(netlab.Match{IP: true, Dst: netip.PrefixFrom(netlab.Client6, 128)})
}

func capture(t *testing.T, b *netlab.Box, link string) *netlab.Capture {
	t.Helper()
	c, err := b.Capture(link)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Stop() })
	return c
}

// S26, Z31: from the first packet on, with the tunnel there, down, deleted, and
// with every rule and route in the task gone, nothing that the task starts is
// seen in clear outside.
func TestS26_NothingLeavesInClear(t *testing.T) {
	l := newLab(t, netlab.Config{})
	task := l.Tasks[0]
	seen := capture(t, l.Host, netlab.HostBridge)

	a := prepare(t, attachConfig(l))
	stage := func(name string) {
		t.Helper()
		shout(t, task)
		if n := clear(seen); n != 0 {
			t.Fatalf("%s: %d packets of the task left in clear", name, n)
		}
	}
	stage("before the tunnel exists")

	tun := openTUN(t, task.NS, "spill0")
	if err := a.Configure(); err != nil {
		t.Fatal(err)
	}
	stage("with the tunnel")
	if n := packetsIn(t, tun); n == 0 {
		t.Error("no packet of the task came into the tunnel")
	}
	if err := task.Conn.SetDown("spill0"); err != nil {
		t.Fatal(err)
	}
	stage("with the tunnel down")
	if err := task.Conn.SetUp("spill0"); err != nil {
		t.Fatal(err)
	}
	tun.Close()
	stage("with the engine killed and the TUN deleted")

	inside, err := a.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if inside.Inside[hostnet.CounterInsideClear4].Packets == 0 || inside.Inside[hostnet.CounterInsideClear6].Packets == 0 {
		t.Errorf("the guard inside counted %v, want packets of both families", inside.Inside)
	}

	// Z33: now as root in the task, tear everything down that can be reached.
	left, err := hostnet.Cleanup(task.NS)
	if err != nil || len(left) == 0 {
		t.Fatalf("cleanup in the task: %v, %v", left, err)
	}
	stage("with rules, routes and the guard inside gone")
	out, err := a.Counters()
	if err != nil {
		t.Fatal(err)
	}
	g := out.Outside[netlab.TaskPeer(0)]
	if g[hostnet.CounterOutsideClear4].Packets < 3 || g[hostnet.CounterOutsideClear6].Packets < 3 {
		t.Errorf("the guard outside counted %v, want packets of both families", g)
	}
}

// packetsIn drains a TUN.
func packetsIn(t *testing.T, tun *os.File) int {
	t.Helper()
	n := 0
	buf := make([]byte, 65536)
	for {
		tun.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := tun.Read(buf); err != nil {
			return n
		}
		n++
	}
}

// ask sends a datagram or stream from the client to the task and returns the
// answer.
func ask(l *netlab.Lab, network string, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := l.Prov.Dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	if err == nil && string(b[:n]) != "ping" {
		err = fmt.Errorf("answer is %q", b[:n])
	}
	return err
}

// serve runs echo servers on wildcard sockets in the task, as most
// applications do.
func serve(t *testing.T, b *netlab.Box, udp, tcp string) {
	t.Helper()
	u, err := b.ListenPacket("udp", udp)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := b.Listen("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			u.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 64)
			n, _ := c.Read(buf)
			c.Write(buf[:n])
			c.Close()
		}
	}()
	t.Cleanup(func() { u.Close(); ln.Close(); <-done; <-done })
}

// S23, S24: what comes in by the primary is answered by the primary: TCP and
// UDP on wildcard sockets, echo, and the error for a closed port; and nothing
// of it enters the tunnel.
func TestS23_InboundIsAnsweredByThePrimary(t *testing.T) {
	l := newLab(t, netlab.Config{})
	task := l.Tasks[0]
	cfg := attachConfig(l)
	_, tun := attach(t, cfg)
	serve(t, task, ":7000", ":7001")
	packetsIn(t, tun)
	for _, a := range []netip.Addr{task.Addr4, task.Addr6} {
		for range 3 {
			if err := ask(l, "udp", netip.AddrPortFrom(a, 7000)); err != nil {
				t.Errorf("UDP server on a wildcard socket, asked at %s: %v", a, err)
			}
			if err := ask(l, "tcp", netip.AddrPortFrom(a, 7001)); err != nil {
				t.Errorf("TCP server on a wildcard socket, asked at %s: %v", a, err)
			}
		}
		if err := ask(l, "tcp", netip.AddrPortFrom(a, 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("closed TCP port of %s: got %v, want refused", a, err)
		}
		if err := ask(l, "udp", netip.AddrPortFrom(a, 9)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("closed UDP port of %s: got %v, want refused", a, err)
		}
		if err := echo(l.Prov, a); err != nil {
			t.Errorf("echo request to %s: %v", a, err)
		}
	}
	if n := packetsIn(t, tun); n != 0 {
		t.Errorf("%d packets of inbound flows entered the tunnel", n)
	}
}

// Declared UDP servers answer without anything having been learned, and large
// answers (several fragments) pass the guard outside.
func TestS23_LargeAndDeclaredUDPAnswers(t *testing.T) {
	l := newLab(t, netlab.Config{})
	cfg := attachConfig(l)
	cfg.UDPServers = []uint16{7000}
	attach(t, cfg)
	for _, port := range []int{7000, 7002} { // declared, learned
		u, err := l.Tasks[0].ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(make([]byte, 6000), from)
			}
		}()
		for _, a := range []netip.Addr{l.Tasks[0].Addr4, l.Tasks[0].Addr6} {
			c, err := l.Prov.Dial(context.Background(), "udp", netip.AddrPortFrom(a, uint16(port)).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			c.Write([]byte("x"))
			b := make([]byte, 10000)
			if n, err := c.Read(b); n != 6000 {
				t.Errorf("answer of %s port %d: got %d bytes, %v, want 6000", a, port, n, err)
			}
		}
	}
}

// Declared destinations, and only they, are reached by the primary.
func TestPrimaryAllowOpensExactlyWhatItSays(t *testing.T) {
	l := newLab(t, netlab.Config{})
	cfg := attachConfig(l)
	for _, s := range []string{netlab.Client4.String() + ":8080", "[" + netlab.Client6.String() + "]:8080"} {
		d, err := hostnet.ParseDestination(s)
		if err != nil {
			t.Fatal(err)
		}
		cfg.PrimaryAllow = append(cfg.PrimaryAllow, d)
	}
	cfg.Exclude = []hostnet.Destination{{Prefix: netip.MustParsePrefix("172.21.0.1/32")}}
	attach(t, cfg)
	for _, a := range []string{netlab.Client4.String(), netlab.Client6.String(), "172.21.0.1"} {
		for _, port := range []string{"8080", "8081"} {
			serve(t, l.Prov, net.JoinHostPort(a, port), net.JoinHostPort(a, port))
		}
	}
	for _, c := range []struct {
		to string
		ok bool
	}{
		{netlab.Client4.String(), true}, {netlab.Client6.String(), true}, {"172.21.0.1", true},
	} {
		for _, network := range []string{"tcp", "udp"} {
			for _, port := range []uint16{8080, 8081} {
				want := port == 8080 || c.to == "172.21.0.1"
				err := askFrom(l.Tasks[0], network, netip.AddrPortFrom(netip.MustParseAddr(c.to), port))
				if (err == nil) != want {
					t.Errorf("%s to %s port %d: got %v, want success %v", network, c.to, port, err, want)
				}
			}
		}
	}
}

func askFrom(b *netlab.Box, network string, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	c, err := b.Dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 64))
	return err
}

// Z26: the inner address is not reachable by the primary.
func TestZ26_InnerAddressIsNotReachedByThePrimary(t *testing.T) {
	l := newLab(t, netlab.Config{})
	a, _ := attach(t, attachConfig(l))
	serve(t, l.Tasks[0], ":7000", ":7001")
	for _, in := range []netip.Addr{inner4, inner6} {
		via := l.Tasks[0].Addr4
		if in.Is6() {
			via = l.Tasks[0].Addr6
		}
		err := l.Host.Conn.SetRoute(hostnet.Route{Dst: netip.PrefixFrom(in, in.BitLen()), Via: via, Dev: netlab.HostBridge})
		if err != nil {
			t.Fatal(err)
		}
		if err := askFrom(l.Host, "udp", netip.AddrPortFrom(in, 7000)); err == nil {
			t.Errorf("%s answered by the primary", in)
		}
	}
	c, err := a.Counters()
	if err != nil || c.Inside[hostnet.CounterInsideWeak].Packets < 2 {
		t.Errorf("weak-host packets counted: %v, %v, want 2 or more", c.Inside, err)
	}
}

// Attaching twice is the same as once, Detach leaves nothing, and
// KeepFailClosed leaves the task closed.
func TestDetachLeavesTheNamespaceAsItWas(t *testing.T) {
	l := newLab(t, netlab.Config{})
	task := l.Tasks[0]
	before := dump(t, task) + dump(t, l.Host)
	cfg := attachConfig(l)
	cfg.Mark = hostnet.DefaultMark
	cfg.UDPServers = []uint16{53}
	cfg.Exclude = []hostnet.Destination{{Prefix: netip.MustParsePrefix("169.254.169.254/32"), Port: 80}}
	a, _ := attach(t, cfg)
	once := ""
	for try := range 50 { // the kernel adds IPv6's local route a moment later
		once = dump(t, task) + dump(t, l.Host)
		if strings.Contains(once, "local "+inner6.String()) {
			break
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	again := prepare(t, cfg)
	if err := again.Configure(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(once, "size 65536"); n < 6 {
		t.Errorf("learned sets with their full bound: got %d, want 6", n)
	}
	settle(t, "attaching twice", once, func() string { return dump(t, task) + dump(t, l.Host) })
	if err := again.Detach(hostnet.DetachOptions{KeepFailClosed: true}); err != nil {
		t.Fatal(err)
	}
	seen := capture(t, l.Host, netlab.HostBridge)
	shout(t, task)
	if n := clear(seen); n != 0 {
		t.Errorf("after a detach that keeps the task closed %d packets left in clear", n)
	}
	if err := a.Detach(hostnet.DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	settle(t, "detach", before, func() string { return dump(t, task) + dump(t, l.Host) })
	if err := ask(l, "udp", netip.AddrPortFrom(task.Addr4, 9)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the task's network after detach: %v", err)
	}
}

// A mark opens the guards inside only where the engine is in the task's
// namespace, and then its sockets use the primary.
func TestMarkOpensOnlyWhereTheEngineIsInside(t *testing.T) {
	for _, mark := range []uint32{0, hostnet.DefaultMark} {
		l := newLab(t, netlab.Config{})
		cfg := attachConfig(l)
		cfg.Mark = mark
		cfg.NoOutsideGuard = true
		attach(t, cfg)
		a := net.JoinHostPort(netlab.Client4.String(), "7000")
		serve(t, l.Prov, a, a)
		err := l.Tasks[0].Do(func() error {
			d := net.Dialer{Timeout: 300 * time.Millisecond, Control: func(_, _ string, c syscall.RawConn) error {
				var err error
				cerr := c.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, hostnet.DefaultMark)
				})
				return errors.Join(cerr, err)
			}}
			c, err := d.Dial("tcp", a)
			if err == nil {
				c.Close()
			}
			return err
		})
		if (err == nil) != (mark != 0) {
			t.Errorf("marked socket with mark %#x declared: got %v", mark, err)
		}
		if err := askFrom(l.Tasks[0], "tcp", netip.MustParseAddrPort(a)); err == nil {
			t.Error("a socket without mark left by the primary")
		}
	}
}

// A task may have no primary at all.
func TestAttachWithoutPrimary(t *testing.T) {
	ns, err := hostnet.NewNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	a, tun := attach(t, hostnet.AttachConfig{NS: ns, Addr4: inner4})
	if len(a.Primaries) != 0 || len(a.Outside()) != 0 {
		t.Errorf("primaries %v, outside %v, want none", a.Primaries, a.Outside())
	}
	b := &netlab.Box{NS: ns}
	askFrom(b, "udp", netip.MustParseAddrPort("198.51.100.1:9"))
	if n := packetsIn(t, tun); n == 0 {
		t.Error("no packet came into the tunnel")
	}
	if err := askFrom(b, "udp", netip.MustParseAddrPort("[2001:db8::1]:9")); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("IPv6 without an inner IPv6 address: got %v, want unreachable", err)
	}
}

// Tasks attach at the same time without meeting each other.
func TestTasksAttachAtOnce(t *testing.T) {
	const n = 6
	l := newLab(t, netlab.Config{Tasks: n})
	errs := make(chan error, n)
	for i := range n {
		go func() {
			cfg := attachConfig(l)
			cfg.NS = l.Tasks[i].NS
			a, err := hostnet.Prepare(cfg)
			if err == nil {
				if got := a.Outside(); len(got) != 1 || got[0] != netlab.TaskPeer(i) {
					err = fmt.Errorf("task %d is guarded at %v, want %s", i, got, netlab.TaskPeer(i))
				}
				err = errors.Join(err, a.Close())
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	seen := capture(t, l.Host, netlab.HostBridge)
	for _, b := range l.Tasks {
		shout(t, b)
	}
	if c := clear(seen); c != 0 {
		t.Errorf("%d packets left in clear", c)
	}
}
