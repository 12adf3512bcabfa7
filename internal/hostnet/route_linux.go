package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks every route and rule that spillway makes (rtm_protocol,
// FRA_PROTOCOL), so that Cleanup finds them and nothing else. Not used by any
// program listed in iproute2's rt_protos.
const RouteProtocol = 83

// MainTable is the kernel's table for ordinary routes (RT_TABLE_MAIN).
const MainTable = unix.RT_TABLE_MAIN

// Route is one route. The zero Table means MainTable.
type Route struct {
	Dst         netip.Prefix // required; 0.0.0.0/0 or ::/0 for a default route
	Via         netip.Addr   // gateway; zero: on the link
	Dev         string       // interface; "" only with Unreachable
	Src         netip.Addr   // preferred source; zero: the kernel chooses
	Table       int
	Metric      int
	MTU         int  // path MTU of the route; 0: the interface's
	OnLink      bool // the gateway is on the link though no route says so
	Unreachable bool // packets are refused with an ICMP error
	Own         bool // carries RouteProtocol. Set by the kernel when listing
	Connected   bool // made by the kernel for an address (RTPROT_KERNEL). Only when listing
}

func (r Route) netlink(c *Conn) (*netlink.Route, error) {
	if !r.Dst.IsValid() {
		return nil, errors.New("route without destination")
	}
	n := &netlink.Route{
		Dst: ipNet(r.Dst.Masked()), Family: family(r.Dst.Addr()), Table: r.Table, Priority: r.Metric, MTU: r.MTU,
		Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST,
	}
	if r.Table == 0 {
		n.Table = MainTable
	}
	if r.Own {
		n.Protocol = RouteProtocol
	}
	if r.Unreachable {
		n.Type = unix.RTN_UNREACHABLE
		return n, nil
	}
	l, err := c.byName(r.Dev)
	if err != nil {
		return nil, err
	}
	n.LinkIndex = l.Attrs().Index
	if r.Via.IsValid() {
		n.Gw = r.Via.AsSlice()
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	if r.OnLink {
		n.Flags = int(netlink.FLAG_ONLINK)
	}
	return n, nil
}

// SetRoute adds a route, or replaces the one with the same destination,
// metric and table.
func (c *Conn) SetRoute(r Route) error {
	n, err := r.netlink(c)
	if err == nil {
		err = c.h.RouteReplace(n)
	}
	if err != nil {
		return fmt.Errorf("set route to %s: %w", r.Dst, err)
	}
	return nil
}

// DelRoute removes a route; one that is not there is no error.
func (c *Conn) DelRoute(r Route) error {
	n, err := r.netlink(c)
	if errors.Is(err, ErrNoLink) {
		return nil // a route ends with its interface
	}
	if err == nil {
		err = gone(c.h.RouteDel(n))
	}
	if err != nil {
		return fmt.Errorf("remove route to %s: %w", r.Dst, err)
	}
	return nil
}

// Routes lists a table (0: MainTable), both families. Multicast and local
// routes are left out.
func (c *Conn) Routes(table int) ([]Route, error) {
	if table == 0 {
		table = MainTable
	}
	var out []Route
	names := map[int]string{}
	for _, f := range families {
		rs, err := c.h.RouteListFiltered(f, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			if noFamily(err) {
				continue
			}
			return nil, fmt.Errorf("list routes of table %d: %w", table, err)
		}
		for i := range rs {
			if rs[i].Type != unix.RTN_UNICAST && rs[i].Type != unix.RTN_UNREACHABLE {
				continue
			}
			out = append(out, c.routeOf(&rs[i], f, names))
		}
	}
	return out, nil
}

func (c *Conn) routeOf(n *netlink.Route, f int, names map[int]string) Route {
	r := Route{
		Dst: prefixOf(n.Dst), Via: addrOf(n.Gw), Src: addrOf(n.Src), Table: n.Table, Metric: n.Priority, MTU: n.MTU,
		OnLink: n.Flags&int(netlink.FLAG_ONLINK) != 0, Unreachable: n.Type == unix.RTN_UNREACHABLE,
		Own: n.Protocol == RouteProtocol, Connected: n.Protocol == unix.RTPROT_KERNEL,
	}
	if !r.Dst.IsValid() {
		r.Dst = defaultRoute(f)
	}
	if len(n.MultiPath) > 0 && n.LinkIndex == 0 {
		n.LinkIndex, r.Via = n.MultiPath[0].LinkIndex, addrOf(n.MultiPath[0].Gw)
	}
	name, ok := names[n.LinkIndex]
	if !ok && n.LinkIndex > 0 {
		if l, err := c.h.LinkByIndex(n.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		names[n.LinkIndex] = name
	}
	r.Dev = name
	return r
}

func defaultRoute(f int) netip.Prefix {
	if f == unix.AF_INET {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// RouteMTU is the MTU of the route that packets to dst would take now: the
// route's own, or else its interface's.
func (c *Conn) RouteMTU(dst netip.Addr) (int, error) {
	rs, err := c.h.RouteGet(dst.Unmap().AsSlice())
	if err == nil && len(rs) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", dst, err)
	}
	if rs[0].MTU > 0 {
		return rs[0].MTU, nil
	}
	l, err := c.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", dst, err)
	}
	return l.MTU, nil
}
