package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// AddAddr gives an interface an address with its prefix; one that it has
// already is no error. An IPv6 address is usable at once: duplicate address
// detection is off for it.
func (c *Conn) AddAddr(link string, p netip.Prefix) error { return c.addAddr(link, p, false) }

// addAddr adds an address; hostOnly means that no route for the prefix is made.
func (c *Conn) addAddr(link string, p netip.Prefix, hostOnly bool) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags |= unix.IFA_F_NODAD
	}
	if hostOnly {
		a.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return c.change(link, "add address "+p.String(), func(l netlink.Link) error { return c.h.AddrReplace(l, a) })
}

// DelAddr takes an address from an interface; one that it does not have is no
// error.
func (c *Conn) DelAddr(link string, p netip.Prefix) error {
	return c.change(link, "remove address "+p.String(), func(l netlink.Link) error {
		return gone(c.h.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)}))
	})
}

// Addrs returns an interface's addresses of both families, link-local ones
// included.
func (c *Conn) Addrs(link string) ([]netip.Prefix, error) {
	l, err := c.byName(link)
	if err != nil {
		return nil, err
	}
	return c.addrs(l)
}

// addrs lists the addresses of l, or of every interface when l is nil.
func (c *Conn) addrs(l netlink.Link) ([]netip.Prefix, error) {
	as, err := c.h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]netip.Prefix, 0, len(as))
	for _, a := range as {
		if p := prefixOf(a.IPNet); p.IsValid() {
			out = append(out, p)
		}
	}
	return out, nil
}

// Neigh is an entry of the neighbour table.
type Neigh struct {
	Addr netip.Addr
	MAC  net.HardwareAddr // nil: not resolved
	// Permanent entries are set by hand and never asked for again.
	Permanent bool
}

// SetNeigh makes a permanent neighbour entry on an interface.
func (c *Conn) SetNeigh(link string, a netip.Addr, mac net.HardwareAddr) error {
	return c.change(link, "set neighbour "+a.String(), func(l netlink.Link) error {
		return c.h.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, Family: family(a), State: netlink.NUD_PERMANENT,
			IP: a.AsSlice(), HardwareAddr: mac,
		})
	})
}

// DelNeigh removes a neighbour entry; one that is not there is no error.
func (c *Conn) DelNeigh(link string, a netip.Addr) error {
	return c.change(link, "remove neighbour "+a.String(), func(l netlink.Link) error {
		return gone(c.h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family(a), IP: a.AsSlice()}))
	})
}

// Neighs returns an interface's neighbour table, both families.
func (c *Conn) Neighs(link string) ([]Neigh, error) {
	l, err := c.byName(link)
	if err != nil {
		return nil, err
	}
	var out []Neigh
	for _, f := range families {
		ns, err := c.h.NeighList(l.Attrs().Index, f)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list neighbours of %s: %w", link, err)
		}
		for _, n := range ns {
			e := Neigh{Addr: addrOf(n.IP), Permanent: n.State&netlink.NUD_PERMANENT != 0}
			if n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
				e.MAC = n.HardwareAddr
			}
			out = append(out, e)
		}
	}
	return out, nil
}
