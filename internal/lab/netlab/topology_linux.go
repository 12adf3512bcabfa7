package netlab

import (
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/internal/hostnet"
)

// The lab's addresses. Boxes that come in numbers count up from the base.
var (
	// Client4 and Client6 are a client somewhere in the provider's network
	// (box prov), several hops from the tasks.
	Client4 = netip.MustParseAddr("203.0.113.10")
	Client6 = netip.MustParseAddr("2001:db8:113::10")

	// Far4 and Far6 are a host behind the subnet's router (box subnet): the
	// customer's other network. No box has a route to it by default.
	Far4 = netip.MustParseAddr("10.9.0.1")
	Far6 = netip.MustParseAddr("fd00:9::1")

	// Gateway4 and Gateway6 are the subnet's router (box subnet).
	Gateway4 = netip.MustParseAddr("10.0.1.1")
	Gateway6 = netip.MustParseAddr("fd00:1::1")

	// Resolver4 and Resolver6 are a second address of the first server.
	Resolver4 = netip.MustParseAddr("10.0.1.2")
	Resolver6 = netip.MustParseAddr("fd00:1::2")

	// SubnetCIDR4 and SubnetCIDR6 are the private subnet. Addresses 50 to 59
	// in it are nobody's: they are for endpoints.
	SubnetCIDR4 = netip.MustParsePrefix("10.0.1.0/24")
	SubnetCIDR6 = netip.MustParsePrefix("fd00:1::/64")
)

// Interface names, the same in every lab.
const (
	TaskLink   = "eth0" // a task's primary
	EgressLink = "eth1" // an egress's interface in the subnet
	UnderLink  = "und0" // the underlay, on host and egress
	ServerLink = "eth0"
	HostBridge = "pbr0" // on the host, joins the tasks' primaries
	SubnetBr   = "br0"
)

// TaskPeer is the host's end of the primary of task i (from 0).
func TaskPeer(i int) string { return fmt.Sprintf("pri%d", i+1) }

// egressPort and serverPort are the subnet bridge's ports.
func egressPort(i int) string { return fmt.Sprintf("eg%d", i+1) }
func serverPort(i int) string { return fmt.Sprintf("sv%d", i+1) }

// EgressSubnet4 and EgressSubnet6 are the own addresses of egress i (from 0)
// in the subnet.
func EgressSubnet4(i int) netip.Addr { return nth("10.0.1.4", i) }
func EgressSubnet6(i int) netip.Addr { return nth("fd00:1::4", i) }

// nth counts up from an address.
func nth(base string, i int) netip.Addr {
	a := netip.MustParseAddr(base)
	for range i {
		a = a.Next()
	}
	return a
}

// wire joins two boxes and gives both ends addresses and an MTU. Ends are up.
func (l *Lab) wire(a *Box, an string, b *Box, bn string, mtu int) error {
	if err := a.Conn.AddVeth(an, bn, b.NS, mtu); err != nil {
		return err
	}
	for _, e := range []struct {
		box  *Box
		name string
	}{{a, an}, {b, bn}} {
		if l.Config.NoOffloads {
			if err := e.box.Conn.SetOffloads(e.name, hostnet.Offloads{}); err != nil {
				return err
			}
		}
		if err := e.box.Conn.SetUp(e.name); err != nil {
			return err
		}
	}
	return nil
}

// addr gives a box addresses on a link; v6 only where the lab has IPv6. The
// box is known by the first pair it gets.
func (l *Lab) addr(b *Box, link string, a4 netip.Addr, bits4 int, a6 netip.Addr, bits6 int) error {
	if err := b.Conn.AddAddr(link, netip.PrefixFrom(a4, bits4)); err != nil {
		return err
	}
	if !b.Addr4.IsValid() {
		b.Addr4 = a4
	}
	if !l.Config.V6 {
		return nil
	}
	if !b.Addr6.IsValid() {
		b.Addr6 = a6
	}
	return b.Conn.AddAddr(link, netip.PrefixFrom(a6, bits6))
}

// route gives a box a route in each family of the lab.
func (l *Lab) route(b *Box, dev, dst4, via4, dst6, via6 string) error {
	rs := []hostnet.Route{{Dst: netip.MustParsePrefix(dst4), Via: netip.MustParseAddr(via4), Dev: dev}}
	if l.Config.V6 {
		rs = append(rs, hostnet.Route{Dst: netip.MustParsePrefix(dst6), Via: netip.MustParseAddr(via6), Dev: dev})
	}
	for _, r := range rs {
		if err := b.Conn.SetRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// clientSource makes the client's address the one that the provider's box
// speaks to the tasks from.
func (l *Lab) clientSource() error {
	rs := []hostnet.Route{{
		Dst: netip.MustParsePrefix("172.20.0.0/24"), Via: nth("172.21.0.2", 0), Dev: "host0", Src: Client4,
	}}
	if l.Config.V6 {
		rs = append(rs, hostnet.Route{
			Dst: netip.MustParsePrefix("fd20::/64"), Via: nth("fd21::2", 0), Dev: "host0", Src: Client6,
		})
	}
	for _, r := range rs {
		if err := l.Prov.Conn.SetRoute(r); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) forward(b *Box) error {
	kv := [][2]string{{"net/ipv4/ip_forward", "1"}}
	if l.Config.V6 {
		kv = append(kv, [2]string{"net/ipv6/conf/all/forwarding", "1"})
	}
	return b.NS.SetSysctls(kv)
}

func (l *Lab) bridge(b *Box, name string) error {
	if err := b.Conn.AddBridge(name); err != nil {
		return err
	}
	return b.Conn.SetUp(name)
}

// first returns the first error of a list of steps, running no step after it.
func first(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// primary builds the provider's side: prov - host - tasks.
func (l *Lab) primary() error {
	h, p := l.Host, l.Prov
	err := first(
		func() error { return l.addr(p, "lo", Client4, 32, Client6, 128) },
		func() error { return l.wire(h, "prov0", p, "host0", 1500) },
		func() error {
			return l.addr(p, "host0", nth("172.21.0.1", 0), 30, nth("fd21::1", 0), 64)
		},
		func() error { return l.bridge(h, HostBridge) },
		func() error { return l.addr(h, HostBridge, nth("172.20.0.1", 0), 24, nth("fd20::1", 0), 64) },
		func() error { return l.addr(h, "prov0", nth("172.21.0.2", 0), 30, nth("fd21::2", 0), 64) },
		func() error { return l.route(h, "prov0", "0.0.0.0/0", "172.21.0.1", "::/0", "fd21::1") },
		l.clientSource,
		func() error { return l.forward(h) },
		func() error { return l.forward(p) },
	)
	for i, t := range l.Tasks {
		if err != nil {
			return err
		}
		err = first(
			func() error { return l.wire(h, TaskPeer(i), t, TaskLink, 1500) },
			func() error { return h.Conn.SetMaster(TaskPeer(i), HostBridge) },
			func() error { return l.addr(t, TaskLink, nth("172.20.0.10", i), 24, nth("fd20::10", i), 64) },
			func() error { return l.route(t, TaskLink, "0.0.0.0/0", "172.20.0.1", "::/0", "fd20::1") },
		)
	}
	return err
}

// underlay joins host and egresses.
func (l *Lab) underlay() error {
	h, mtu := l.Host, l.Config.MTU
	h.Addr4, h.Addr6 = netip.Addr{}, netip.Addr{} // known by the underlay address
	if l.Und == nil {
		e := l.Egress[0]
		return first(
			func() error { return l.wire(h, UnderLink, e, UnderLink, mtu) },
			func() error { return l.addr(h, UnderLink, nth("10.200.0.1", 0), 24, nth("fd02::1", 0), 64) },
			func() error { return l.addr(e, UnderLink, nth("10.200.0.10", 0), 24, nth("fd02::10", 0), 64) },
		)
	}
	cloud := l.Config.Profile == Cloud
	err := first(
		func() error { return l.wire(h, UnderLink, l.Und, "host0", mtu) },
		func() error { return l.addr(h, UnderLink, nth("10.200.0.1", 0), 24, nth("fd02::1", 0), 64) },
		func() error { return l.bridge(l.Und, SubnetBr) },
	)
	if err == nil && cloud {
		err = first(
			func() error { return l.addr(l.Und, "host0", nth("10.200.0.254", 0), 24, nth("fd02::fe", 0), 64) },
			func() error { return l.addr(l.Und, SubnetBr, nth("10.200.1.254", 0), 24, nth("fd02:1::fe", 0), 64) },
			func() error { return l.route(h, UnderLink, "10.200.1.0/24", "10.200.0.254", "fd02:1::/64", "fd02::fe") },
			func() error { return l.forward(l.Und) },
			func() error { return l.Und.Conn.FabricFirewall(firewallTable, "host0") },
		)
	} else if err == nil {
		err = l.Und.Conn.SetMaster("host0", SubnetBr)
	}
	for i, e := range l.Egress {
		if err != nil {
			return err
		}
		err = first(
			func() error { return l.wire(e, UnderLink, l.Und, egressPort(i), mtu) },
			func() error { return l.Und.Conn.SetMaster(egressPort(i), SubnetBr) },
			func() error {
				if cloud {
					return l.addr(e, UnderLink, nth("10.200.1.10", i), 24, nth("fd02:1::10", i), 64)
				}
				return l.addr(e, UnderLink, nth("10.200.0.10", i), 24, nth("fd02::10", i), 64)
			},
			func() error {
				if !cloud {
					return nil
				}
				return l.route(e, UnderLink, "10.200.0.0/24", "10.200.1.254", "fd02::/64", "fd02:1::fe")
			},
		)
	}
	return err
}

// subnet builds the private network.
func (l *Lab) subnet() error {
	s, mtu := l.Subnet, l.Config.SubnetMTU
	err := first(
		func() error { return l.bridge(s, SubnetBr) },
		func() error { return s.Conn.SetMTU(SubnetBr, mtu) },
		func() error { return l.addr(s, SubnetBr, Gateway4, 24, Gateway6, 64) },
		func() error { return l.addr(s, "lo", Far4, 32, Far6, 128) },
		func() error { return l.forward(s) },
	)
	for i, e := range l.Egress {
		if err != nil {
			return err
		}
		err = first(
			func() error { return l.wire(e, EgressLink, s, egressPort(i), mtu) },
			func() error { return s.Conn.SetMaster(egressPort(i), SubnetBr) },
			func() error { return l.addr(e, EgressLink, EgressSubnet4(i), 24, EgressSubnet6(i), 64) },
		)
	}
	for i, v := range l.Servers {
		if err != nil {
			return err
		}
		err = first(
			func() error { return l.wire(v, ServerLink, s, serverPort(i), mtu) },
			func() error { return s.Conn.SetMaster(serverPort(i), SubnetBr) },
			func() error { return l.addr(v, ServerLink, nth("10.0.1.20", i), 24, nth("fd00:1::20", i), 64) },
			func() error { return l.route(v, ServerLink, "10.9.0.0/24", "10.0.1.1", "fd00:9::/64", "fd00:1::1") },
		)
		if err == nil && i == 0 {
			err = l.addr(v, ServerLink, Resolver4, 24, Resolver6, 64)
		}
	}
	return err
}
