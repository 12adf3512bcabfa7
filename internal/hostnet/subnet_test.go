//go:build netns && linux

package hostnet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	endpoint4 = netip.MustParseAddr("10.0.1.50")
	endpoint6 = netip.MustParseAddr("fd00:1::50")
)

// udpPacket builds an IP packet as an engine would write it into the TUN.
func udpPacket(t *testing.T, from, to netip.AddrPort, payload string) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	buf := gopacket.NewSerializeBuffer()
	opt := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	var ip gopacket.SerializableLayer
	if from.Addr().Is4() {
		h := &layers.IPv4{Version: 4, TTL: 63, Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		udp.SetNetworkLayerForChecksum(h)
		ip = h
	} else {
		h := &layers.IPv6{Version: 6, HopLimit: 63, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		udp.SetNetworkLayerForChecksum(h)
		ip = h
	}
	if err := gopacket.SerializeLayers(buf, opt, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// through sends a datagram from an endpoint address by the TUN and waits for
// the echo to come back into it.
func through(t *testing.T, tun *os.File, from, to netip.AddrPort) error {
	t.Helper()
	if _, err := tun.Write(udpPacket(t, from, to, "ping")); err != nil {
		return err
	}
	end := time.Now().Add(500 * time.Millisecond)
	buf := make([]byte, 65536)
	for {
		tun.SetReadDeadline(end)
		n, err := tun.Read(buf)
		if err != nil {
			return err
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if buf[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(buf[:n], first, gopacket.Default)
		u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		src, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		if ok && src == to.Addr() && string(u.Payload) == "ping" && uint16(u.SrcPort) == to.Port() && uint16(u.DstPort) == from.Port() {
			return nil
		}
	}
}

// connect opens the lab's subnet on its egress, with a TUN and a running
// responder that owns both endpoint addresses.
func connect(t *testing.T, l *netlab.Lab, cfg hostnet.SubnetConfig) (*hostnet.Subnet, *os.File, *hostnet.Responder) {
	t.Helper()
	cfg.ID, cfg.Link, cfg.Host, cfg.RunDir = "t1", netlab.EgressLink, l.Egress[0].NS, t.TempDir()
	s, err := hostnet.OpenSubnet(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close subnet: %v", err)
		}
	})
	tun := openTUN(t, s.NS(), s.TUN())
	if err := s.Configure(1420); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		if err := s.AddAddress(a); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	r := respond(t, hostnet.ResponderConfig{NS: s.NS(), Link: s.Link()})
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		if err := r.Own(a); err != nil {
			t.Fatal(err)
		}
	}
	return s, tun, r
}

func respond(t *testing.T, cfg hostnet.ResponderConfig) *hostnet.Responder {
	t.Helper()
	r, err := hostnet.NewResponder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("responder: %v", err)
		}
	})
	<-r.Ready()
	return r
}

func isolations(t *testing.T, run func(t *testing.T, cfg hostnet.SubnetConfig)) {
	for _, c := range []struct {
		name string
		cfg  hostnet.SubnetConfig
	}{
		{"netns", hostnet.SubnetConfig{Isolate: hostnet.IsolateNetNS}},
		{"netns macvlan", hostnet.SubnetConfig{Isolate: hostnet.IsolateNetNS, Macvlan: true, Addrs: []netip.Prefix{
			netip.MustParsePrefix("10.0.1.9/24"), netip.MustParsePrefix("fd00:1::9/64")}}},
		{"none", hostnet.SubnetConfig{Isolate: hostnet.IsolateNone}},
	} {
		t.Run(c.name, func(t *testing.T) { run(t, c.cfg) })
	}
}

// S27, S29: an endpoint's packets reach the subnet with its address and their
// answers come back, untracked; nothing else goes through the TUN in either
// direction, and there is no way beyond the subnet that nobody configured.
func TestS27_SubnetForwardsTheEndpointAndNothingElse(t *testing.T) {
	isolations(t, func(t *testing.T, cfg hostnet.SubnetConfig) {
		l := newLab(t, netlab.Config{Servers: 2})
		// The machine's own default route: the implicit internet path.
		for _, r := range []hostnet.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: l.Host.Addr4, Dev: netlab.UnderLink},
			{Dst: netip.MustParsePrefix("::/0"), Via: l.Host.Addr6, Dev: netlab.UnderLink},
		} {
			if err := l.Egress[0].Conn.SetRoute(r); err != nil {
				t.Fatal(err)
			}
		}
		s, tun, _ := connect(t, l, cfg)
		serve(t, l.Servers[1], ":7000", ":7001")
		under := capture(t, l.Host, netlab.UnderLink)
		for _, c := range []struct{ from, to netip.Addr }{
			{endpoint4, l.Servers[1].Addr4}, {endpoint6, l.Servers[1].Addr6},
		} {
			from, to := netip.AddrPortFrom(c.from, 40000), netip.AddrPortFrom(c.to, 7000)
			if err := through(t, tun, from, to); err != nil {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			spoofed := netip.AddrPortFrom(c.from.Next(), 40000)
			if err := through(t, tun, spoofed, to); err == nil {
				t.Errorf("a source that is no endpoint's, %s, passed", spoofed)
			}
			for _, beyond := range []string{"198.51.100.7", "2001:db8::7"} {
				if b := netip.MustParseAddr(beyond); b.Is4() == c.from.Is4() {
					tun.Write(udpPacket(t, from, netip.AddrPortFrom(b, 53), "leak"))
				}
			}
		}
		// To the machine itself.
		for _, a := range []netip.Addr{l.Egress[0].Addr4, netlab.EgressSubnet4(0)} {
			if err := through(t, tun, netip.AddrPortFrom(endpoint4, 40000), netip.AddrPortFrom(a, 7000)); err == nil {
				t.Errorf("the machine answered at %s", a)
			}
		}
		if n := under.Count(netlab.Match{Has: []byte("leak")}); n != 0 {
			t.Errorf("%d packets left by the machine's default route", n)
		}
		m, err := s.Counters()
		if err != nil || m[hostnet.CounterSubnetSpoofed].Packets < 1 {
			// The IPv4 one may have ended at the reverse path filter.
			t.Errorf("counters: %v, %v, want a spoofed packet", m, err)
		}
		if n, err := s.NS().Sysctl("net/netfilter/nf_conntrack_count"); err != nil || n != "0" {
			t.Errorf("tracked connections: got %q, %v, want 0", n, err)
		}
		if err := s.RemoveAddress(endpoint4); err != nil {
			t.Fatal(err)
		}
		err = through(t, tun, netip.AddrPortFrom(endpoint4, 40001), netip.AddrPortFrom(l.Servers[1].Addr4, 7000))
		if err == nil {
			t.Error("a removed address still passes")
		}
	})
}

// S28: the subnet's own route table decides, and a change counts at once.
func TestS28_RoutesOfTheSubnetDecide(t *testing.T) {
	for _, cfg := range []hostnet.SubnetConfig{
		{Isolate: hostnet.IsolateNetNS},
		{Isolate: hostnet.IsolateNone, ExtraRoutes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}},
	} {
		t.Run(string(cfg.Isolate), func(t *testing.T) {
			l := newLab(t, netlab.Config{})
			s, tun, _ := connect(t, l, cfg)
			serve(t, l.Subnet, net.JoinHostPort(netlab.Far4.String(), "7000"), net.JoinHostPort(netlab.Far4.String(), "7000"))
			from, to := netip.AddrPortFrom(endpoint4, 40000), netip.AddrPortFrom(netlab.Far4, 7000)
			if err := through(t, tun, from, to); err == nil {
				t.Fatal("the far network answered without a route")
			}
			c, err := s.NS().Open()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r := hostnet.Route{Dst: netip.MustParsePrefix("10.9.0.0/24"), Via: netlab.Gateway4, Dev: netlab.EgressLink}
			for _, want := range []bool{true, false} {
				if want {
					err = c.SetRoute(r)
				} else {
					err = c.DelRoute(r)
				}
				if err := errors.Join(err, s.Sync()); err != nil {
					t.Fatal(err)
				}
				if err := through(t, tun, from, to); (err == nil) != want {
					t.Errorf("with the route %v: got %v", want, err)
				}
			}
		})
	}
}

// The endpoint's address must not be the machine's.
func TestEndpointAddressOfTheMachineIsRefused(t *testing.T) {
	l := newLab(t, netlab.Config{})
	s, _, _ := connect(t, l, hostnet.SubnetConfig{Isolate: hostnet.IsolateNone})
	if err := s.AddAddress(netlab.EgressSubnet4(0)); !errors.Is(err, hostnet.ErrAddressOwned) {
		t.Errorf("got %v, want ErrAddressOwned", err)
	}
}

func TestCloseSubnetLeavesTheMachineAsItWas(t *testing.T) {
	isolations(t, func(t *testing.T, cfg hostnet.SubnetConfig) {
		l := newLab(t, netlab.Config{})
		e := l.Egress[0]
		sysctls := func() string {
			var out []string
			for _, k := range []string{"net/ipv4/conf/eth1/forwarding", "net/ipv6/conf/eth1/force_forwarding", "net/ipv4/ip_forward",
				"net/ipv4/conf/eth1/send_redirects"} {
				v, err := e.NS.Sysctl(k)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, k+"="+v)
			}
			return strings.Join(out, "\n")
		}
		time.Sleep(50 * time.Millisecond) // the kernel adds IPv6's local routes a moment later
		before, sys := dump(t, e), sysctls()
		s, tun, _ := connect(t, l, cfg)
		if err := s.Configure(1420); err != nil {
			t.Fatalf("configure again: %v", err)
		}
		tun.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := e.Conn.WaitReady(ctx, netlab.EgressLink); err != nil {
			t.Fatal(err)
		}
		// Link-local addresses are new after a move; the rest is as before.
		drop := func(s string) string {
			var out []string
			for _, line := range strings.Split(s, "\n") {
				if !strings.Contains(line, "fe80:") {
					f, _, _ := strings.Cut(line, "ip -o addr")
					out = append(out, f+strings.TrimLeft(strings.TrimPrefix(line, f), "0123456789"))
				}
			}
			return strings.Join(out, "\n")
		}
		settle(t, "close", drop(before), func() string { return drop(dump(t, e)) })
		if now := sysctls(); now != sys {
			t.Errorf("settings:\n%s\nwere\n%s", now, sys)
		}
	})
}

// resolve makes a box ask for a's Ethernet address and returns it; nil when
// nobody answered.
func resolve(t *testing.T, b *netlab.Box, a netip.Addr) net.HardwareAddr {
	t.Helper()
	c, err := b.Dial(context.Background(), "udp", netip.AddrPortFrom(a, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	for range 30 {
		ns, err := b.Conn.Neighs(netlab.ServerLink)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range ns {
			if n.Addr == a && n.MAC != nil {
				return n.MAC
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// Z23: ARP and neighbour discovery are answered for exactly the owned
// addresses, while they are owned and the responder runs.
func TestZ23_AnswersForExactlyItsAddresses(t *testing.T) {
	l := newLab(t, netlab.Config{})
	link, err := l.Egress[0].Conn.Link(netlab.EgressLink)
	if err != nil {
		t.Fatal(err)
	}
	r, err := hostnet.NewResponder(hostnet.ResponderConfig{NS: l.Egress[0].NS, Link: netlab.EgressLink, Announce: []time.Duration{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-r.Ready()
	seen := capture(t, l.Servers[0], netlab.ServerLink)
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		if err := r.Own(a); err != nil {
			t.Fatal(err)
		}
		if mac := resolve(t, l.Servers[0], a); mac.String() != link.MAC.String() {
			t.Errorf("%s: got %v, want %v", a, mac, link.MAC)
		}
		if mac := resolve(t, l.Servers[0], a.Next()); mac != nil {
			t.Errorf("%s is not owned, but %v answered", a.Next(), mac)
		}
		r.Disown(a)
		if err := l.Servers[0].Conn.DelNeigh(netlab.ServerLink, a); err != nil {
			t.Fatal(err)
		}
		if mac := resolve(t, l.Servers[0], a); mac != nil {
			t.Errorf("%s is disowned, but %v answered", a, mac)
		}
		if err := r.Own(a); err != nil {
			t.Fatal(err)
		}
	}
	if st := r.Stats(); st.Answered < 2 || st.Ignored < 2 || st.Announced != 0 {
		t.Errorf("stats: got %+v", st)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		l.Servers[0].Conn.DelNeigh(netlab.ServerLink, a)
		if mac := resolve(t, l.Servers[0], a); mac != nil {
			t.Errorf("the responder ended, but %v answered for %s", mac, a)
		}
	}
	if n := seen.Count(netlab.Match{ARP: true, Src: netip.PrefixFrom(endpoint4.Next(), 32)}); n != 0 {
		t.Errorf("%d ARP packets claim an address that was never owned", n)
	}
}

// A claim is announced three times, and moves the address of everybody who
// knew another owner.
func TestClaimIsAnnounced(t *testing.T) {
	l := newLab(t, netlab.Config{Egresses: 2})
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		var rs []*hostnet.Responder
		for _, e := range l.Egress {
			rs = append(rs, respond(t, hostnet.ResponderConfig{NS: e.NS, Link: netlab.EgressLink,
				Announce: []time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond}}))
		}
		want := func(i int) {
			t.Helper()
			link, err := l.Egress[i].Conn.Link(netlab.EgressLink)
			if err != nil {
				t.Fatal(err)
			}
			end := time.Now().Add(time.Second)
			for {
				if mac := resolve(t, l.Servers[0], a); mac.String() == link.MAC.String() {
					return
				} else if time.Now().After(end) {
					t.Fatalf("%s is at %v, want egress %d (%v)", a, mac, i+1, link.MAC)
				}
			}
		}
		claims := []hostnet.ClaimARP{{Responder: rs[0]}, {Responder: rs[1], Probe: 100 * time.Millisecond}}
		if err := claims[0].Claim(context.Background(), a, 1); err != nil {
			t.Fatal(err)
		}
		want(0)
		var used *hostnet.AddressInUseError
		if err := claims[1].Claim(context.Background(), a, 2); !errors.As(err, &used) {
			t.Errorf("claim of an address that is in use: got %v", err)
		}
		if err := claims[0].Release(context.Background(), a, 1); err != nil {
			t.Fatal(err)
		}
		if err := claims[1].Claim(context.Background(), a, 2); err != nil {
			t.Fatal(err)
		}
		want(1)
		end := time.Now().Add(time.Second)
		for rs[1].Stats().Announced < 3 && time.Now().Before(end) {
			time.Sleep(5 * time.Millisecond)
		}
		if n := rs[1].Stats().Announced; n != 3 {
			t.Errorf("announcements: got %d, want 3", n)
		}
		if err := claims[1].Check(context.Background(), a, 2); err != nil {
			t.Error(err)
		}
	}
}

// Z23: somebody else claims our address: it is reported, and defended, but not
// more than once per interval.
func TestZ23_ConflictIsReportedAndDefended(t *testing.T) {
	l := newLab(t, netlab.Config{Servers: 1})
	conflicts := make(chan hostnet.Conflict, 100)
	r := respond(t, hostnet.ResponderConfig{NS: l.Egress[0].NS, Link: netlab.EgressLink, Announce: []time.Duration{},
		Conflict: func(c hostnet.Conflict) { conflicts <- c }})
	thief, err := l.Servers[0].Conn.Link(netlab.ServerLink)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{endpoint4, endpoint6} {
		if err := r.Own(a); err != nil {
			t.Fatal(err)
		}
		// The thief answers for it with a responder of its own.
		other := respond(t, hostnet.ResponderConfig{NS: l.Servers[0].NS, Link: netlab.ServerLink,
			Announce: []time.Duration{0, 20 * time.Millisecond, 40 * time.Millisecond}})
		if err := other.Own(a); err != nil {
			t.Fatal(err)
		}
		defended := 0
		for n := 0; n < 3; {
			select {
			case c := <-conflicts:
				if c.Addr != a {
					continue // the thief of the other family is still there
				}
				n++
				if c.MAC.String() != thief.MAC.String() {
					t.Errorf("conflict: got %+v, want %s at %v", c, a, thief.MAC)
				}
				if c.Defended {
					defended++
				}
			case <-time.After(2 * time.Second):
				t.Fatalf("%s: conflict not reported", a)
			}
		}
		if defended != 1 {
			t.Errorf("%s: defended %d times in one interval, want once", a, defended)
		}
	}
}

// The exec claim calls its program as documented and reports what it said.
func TestClaimExec(t *testing.T) {
	l := newLab(t, netlab.Config{Profile: netlab.Cloud})
	prog, err := l.ClaimProgram(0)
	if err != nil {
		t.Fatal(err)
	}
	c := hostnet.ClaimExec{Path: prog}
	ctx := context.Background()
	if err := c.Check(ctx, endpoint4, 3); err == nil || !strings.Contains(err.Error(), "not bound") {
		t.Errorf("check before the claim: got %v", err)
	}
	if err := c.Claim(ctx, endpoint4, 3); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(ctx, endpoint4, 3); err != nil {
		t.Error(err)
	}
	if err := c.Release(ctx, endpoint4, 3); err != nil {
		t.Error(err)
	}
	slow := t.TempDir() + "/slow"
	if err := os.WriteFile(slow, []byte("#!/bin/sh\necho waiting >&2\nsleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = hostnet.ClaimExec{Path: slow, Timeout: 50 * time.Millisecond}.Claim(ctx, endpoint4, 3)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting") || time.Since(start) > 5*time.Second {
		t.Errorf("a program that hangs: got %v after %v", err, time.Since(start))
	}
	if err := (hostnet.ClaimExec{Path: "/nonexistent"}).Claim(ctx, endpoint4, 3); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: got %v", err)
	}
}

// A process that was killed leaves its subnet connected; the next one adopts
// it, and gives the interface back with its addresses.
func TestSubnetOfAKilledProcessIsAdopted(t *testing.T) {
	for _, iso := range []hostnet.Isolation{hostnet.IsolateNetNS, hostnet.IsolateNone} {
		t.Run(string(iso), func(t *testing.T) {
			l := newLab(t, netlab.Config{})
			e := l.Egress[0]
			cfg := hostnet.SubnetConfig{ID: "t1", Link: netlab.EgressLink, Host: e.NS, RunDir: t.TempDir(), Isolate: iso}
			first, err := hostnet.OpenSubnet(cfg) // never closed
			if err != nil {
				t.Fatal(err)
			}
			tun := openTUN(t, first.NS(), first.TUN())
			if err := errors.Join(first.AddAddress(endpoint4), first.Configure(1420)); err != nil {
				t.Fatal(err)
			}
			tun.Close()

			s, err := hostnet.OpenSubnet(cfg)
			if err != nil {
				t.Fatal(err)
			}
			tun = openTUN(t, s.NS(), s.TUN())
			if err := errors.Join(s.Configure(1420), s.AddAddress(endpoint4)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			if err := s.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			r := respond(t, hostnet.ResponderConfig{NS: s.NS(), Link: s.Link()})
			if err := r.Own(endpoint4); err != nil {
				t.Fatal(err)
			}
			serve(t, l.Servers[0], ":7000", ":7001")
			err = through(t, tun, netip.AddrPortFrom(endpoint4, 40000), netip.AddrPortFrom(l.Servers[0].Addr4, 7000))
			if err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			as, err := e.Conn.Addrs(netlab.EgressLink)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []netip.Addr{netlab.EgressSubnet4(0), netlab.EgressSubnet6(0)} {
				if !slices.ContainsFunc(as, func(p netip.Prefix) bool { return p.Addr() == want }) {
					t.Errorf("addresses after close: got %v, want %s among them", as, want)
				}
			}
			if left, err := hostnet.Cleanup(e.NS); err != nil || len(left) != 0 {
				t.Errorf("left for cleanup: %v, %v", left, err)
			}
		})
	}
}
