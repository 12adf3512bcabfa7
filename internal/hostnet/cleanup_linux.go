package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Cleanup finds and removes everything of spillway's in a namespace, whoever
// made it and however it ended: tunnel interfaces (TUNs called spill… or
// sw-…), nftables tables, rules and routes with RouteProtocol. It returns what
// it removed, in words, and goes on after an error. Do it in the host's
// namespace for the guards outside, and in each task's. Guards go last.
func Cleanup(ns *NS) (removed []string, err error) {
	c, err := ns.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var errs []error
	done := func(what string, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		removed = append(removed, what)
	}
	links, err := c.Links()
	errs = append(errs, err)
	for _, l := range links {
		if l.Kind == "tuntap" && (strings.HasPrefix(l.Name, "spill") || strings.HasPrefix(l.Name, TUNPrefix)) {
			done("interface "+l.Name, c.DeleteLink(l.Name))
		}
	}
	if n, err := c.delOwnRules(0, 32765, nil); n > 0 || err != nil {
		done(fmt.Sprintf("%d routing rules", n), err)
	}
	if n, err := c.delOwnRoutes(); n > 0 || err != nil {
		done(fmt.Sprintf("%d routes", n), err)
	}
	tables, err := c.ownTables()
	errs = append(errs, err)
	for _, t := range tables {
		done("nftables table "+t.Name, c.delTable(t.Family, t.Name))
	}
	return removed, errors.Join(errs...)
}

// delOwnRoutes removes the routes with RouteProtocol from every table.
func (c *Conn) delOwnRoutes() (int, error) {
	n := 0
	for _, f := range families {
		rs, err := c.h.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: RouteProtocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			if noFamily(err) {
				continue
			}
			return n, fmt.Errorf("list routes: %w", err)
		}
		for i := range rs {
			if rs[i].Dst == nil {
				rs[i].Dst = ipNet(defaultRoute(f))
			}
			rs[i].Family = f
			if err := gone(c.h.RouteDel(&rs[i])); err != nil {
				return n, fmt.Errorf("remove route to %s: %w", rs[i].Dst, err)
			}
			n++
		}
	}
	return n, nil
}
