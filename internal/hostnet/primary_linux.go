package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Primary is an interface of a task that is not the tunnel: requests come in
// by it and their answers go out by it.
type Primary struct {
	Link
	Addrs   []netip.Prefix // with the prefix of the network they are in
	Default bool           // has a default route of the main table
}

// Primaries finds the interfaces of a namespace that are neither loopback nor
// the tunnel (by name), those with a default route first. A namespace may have
// none.
func (c *Conn) Primaries(tunnel string) ([]Primary, error) {
	links, err := c.Links()
	if err != nil {
		return nil, err
	}
	routes, err := c.Routes(MainTable)
	if err != nil {
		return nil, err
	}
	withDefault := map[string]bool{}
	for _, r := range routes {
		if r.Dst.Bits() == 0 && !r.Unreachable {
			withDefault[r.Dev] = true
		}
	}
	all, err := c.h.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var first, rest []Primary
	for _, l := range links {
		if l.Name == "lo" || l.Name == tunnel {
			continue
		}
		p := Primary{Link: l, Default: withDefault[l.Name]}
		for _, a := range all {
			if a.LinkIndex == l.Index {
				p.Addrs = append(p.Addrs, prefixOf(a.IPNet))
			}
		}
		switch {
		case p.Default:
			first = append(first, p)
		case len(p.Addrs) > 0 || l.Up:
			rest = append(rest, p)
		}
	}
	return append(first, rest...), nil
}

// ErrNoPeer is returned when a primary interface has no other end in the
// namespace that was searched: it is no veth, or its other end is elsewhere.
var ErrNoPeer = errors.New("the primary interface has no other end here")

// PeerOf finds the other end of a veth of the task's namespace in the host's
// namespace: IFLA_LINK is its index there, and IFLA_LINK_NETNSID must be what
// the task's namespace calls the host's.
func PeerOf(task, host *Conn, p Primary) (Link, error) {
	if p.Kind != "veth" || p.Peer == 0 {
		return Link{}, fmt.Errorf("interface %s (%s): %w", p.Name, p.Kind, ErrNoPeer)
	}
	if !task.ns.Same(host.ns) {
		id, err := task.h.GetNetNsIdByFd(host.ns.FD())
		if err != nil {
			return Link{}, fmt.Errorf("interface %s: namespace id: %w", p.Name, err)
		}
		if id < 0 || id != p.PeerNS {
			return Link{}, fmt.Errorf("interface %s: %w", p.Name, ErrNoPeer)
		}
	}
	l, err := host.LinkByIndex(p.Peer)
	if err != nil {
		return Link{}, fmt.Errorf("interface %s: %w", p.Name, errors.Join(ErrNoPeer, err))
	}
	return l, nil
}
