package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
)

// ErrAddressOwned is returned for an endpoint address that the machine itself
// has on an interface: its kernel would answer instead of the endpoint.
var ErrAddressOwned = errors.New("the machine itself has this address")

// tables are the routing tables of a subnet with IsolateNone: out of the TUN
// and into it.
func (s *Subnet) tables() (out, in int) {
	return SubnetTable + 2*s.cfg.Index, SubnetTable + 2*s.cfg.Index + 1
}

// rememberSettings reads the settings of the interface that IsolateNone
// changes, for Close, and whether the machine is a router already. A guard of
// ours that is there says that an earlier process changed them: then the
// interface is taken as no router.
func (s *Subnet) rememberSettings() error {
	v4 := "net/ipv4/conf/" + s.cfg.Link + "/"
	fwd, err := s.ns.Sysctl(v4 + "forwarding")
	if err != nil {
		return err
	}
	old, err := s.conn.ownTables()
	if err != nil {
		return err
	}
	for _, t := range old {
		if t.Name == s.guardTable() {
			fwd = "0"
		}
	}
	s.wasRouter = fwd == "1"
	s.restore = append(s.restore, [2]string{v4 + "forwarding", fwd})
	for _, key := range []string{v4 + "send_redirects", "net/ipv6/conf/" + s.cfg.Link + "/force_forwarding"} {
		v, err := s.ns.Sysctl(key)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		s.restore = append(s.restore, [2]string{key, v})
	}
	return nil
}

// tunSettings lets packets be forwarded from and to the TUN.
func (s *Subnet) tunSettings() error {
	tun, link := s.TUN(), s.cfg.Link
	kv := [][2]string{
		{"net/ipv4/conf/" + tun + "/forwarding", "1"},
		// The way back to an endpoint's address is the TUN with either
		// isolation (the kernel asks as if the packet came by the way out),
		// and to any other address it is not.
		{"net/ipv4/conf/" + tun + "/rp_filter", "1"},
		{"net/ipv4/conf/" + tun + "/accept_redirects", "0"},
		{"net/ipv6/conf/" + tun + "/accept_ra", "0"},
		{"net/ipv6/conf/" + tun + "/autoconf", "0"},
		{"net/ipv6/conf/" + tun + "/addr_gen_mode", "1"},
	}
	if s.cfg.Isolate == IsolateNetNS {
		kv = append(kv, [2]string{"net/ipv6/conf/" + link + "/accept_ra", "2"})
	} else {
		kv = append(kv,
			[2]string{"net/ipv4/conf/" + link + "/forwarding", "1"},
			[2]string{"net/ipv4/conf/" + link + "/send_redirects", "0"})
	}
	return s.ns.Do(func() error {
		for _, e := range kv {
			if err := writeSysctl(e[0], e[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if s.cfg.Isolate == IsolateNone {
			return forward6(tun, link)
		}
		return nil
	})
}

// forward6 lets IPv6 be forwarded between two interfaces only, where the
// kernel can (force_forwarding, 6.17); else everywhere, with router
// advertisements still believed on the second.
func forward6(tun, link string) error {
	one := func(dev string) error { return writeSysctl("net/ipv6/conf/"+dev+"/force_forwarding", "1") }
	err := one(tun)
	if err == nil {
		return one(link)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err = writeSysctl("net/ipv6/conf/"+link+"/accept_ra", "2")
	if err == nil {
		err = writeSysctl("net/ipv6/conf/all/forwarding", "1")
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // no IPv6
	}
	return err
}

// ownTable makes the tables and rules of IsolateNone.
func (s *Subnet) ownTable() error {
	out, in := s.tables()
	for _, f := range families {
		for _, r := range []rule{
			{priority: prioSubnetStop, iif: s.TUN(), unreachable: true},
			{priority: prioSubnetOut, iif: s.TUN(), table: out},
			{priority: prioSubnetIn, iif: s.cfg.Link, table: in},
		} {
			r.family = f
			if err := s.conn.addRule(r); err != nil && !noFamily(err) {
				return err
			}
		}
	}
	return s.Sync()
}

// dropTable removes what ownTable made.
func (s *Subnet) dropTable() error {
	var errs []error
	for _, f := range families {
		for _, r := range []rule{
			{priority: prioSubnetOut, iif: s.TUN()}, {priority: prioSubnetStop, iif: s.TUN()},
			{priority: prioSubnetIn, iif: s.cfg.Link},
		} {
			out, in := s.tables()
			switch r.priority {
			case prioSubnetOut:
				r.table = out
			case prioSubnetIn:
				r.table = in
			default:
				r.unreachable = true
			}
			r.family = f
			if err := gone(s.conn.h.RuleDel(r.netlink())); err != nil && !noFamily(err) {
				errs = append(errs, fmt.Errorf("remove rule %d: %w", r.priority, err))
			}
		}
	}
	out, in := s.tables()
	for _, t := range []int{out, in} {
		rs, err := s.conn.Routes(t)
		errs = append(errs, err)
		for _, r := range rs {
			errs = append(errs, s.conn.DelRoute(r))
		}
	}
	return errors.Join(errs...)
}

// Sync copies the interface's routes of the main table into the subnet's own
// table: connected ones, and those of ExtraRoutes. Call it when routes may
// have changed. With IsolateNetNS there is nothing to copy: the namespace's
// main table is what counts, live.
func (s *Subnet) Sync() error {
	if s.cfg.Isolate != IsolateNone {
		return nil
	}
	out, _ := s.tables()
	want, err := s.conn.Routes(MainTable)
	if err != nil {
		return err
	}
	want = slices.DeleteFunc(want, func(r Route) bool {
		return r.Dev != s.cfg.Link || r.Unreachable || r.Dst.Addr().IsLinkLocalUnicast() ||
			(!r.Connected && !slices.Contains(s.cfg.ExtraRoutes, r.Dst))
	})
	have, err := s.conn.Routes(out)
	if err != nil {
		return err
	}
	same := func(a, b Route) bool {
		return a.Dst == b.Dst && a.Metric == b.Metric
	}
	// Connected routes first: a gateway must be on one of them.
	slices.SortStableFunc(want, func(a, b Route) int {
		switch {
		case a.Connected == b.Connected:
			return 0
		case a.Connected:
			return -1
		}
		return 1
	})
	for i := range want {
		r := want[i]
		// The gateway was reachable in the main table, whatever this one says.
		r.Table, r.Own, r.Src, r.OnLink = out, true, netip.Addr{}, r.Via.IsValid()
		if err := s.conn.SetRoute(r); err != nil {
			return err
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w Route) bool { return same(w, h) }) {
			if err := s.conn.DelRoute(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Subnet) addressRoute(a netip.Addr) Route {
	r := Route{Dst: netip.PrefixFrom(a, a.BitLen()), Dev: s.TUN(), Own: true}
	if s.cfg.Isolate == IsolateNone {
		_, r.Table = s.tables()
	}
	return r
}

// AddAddress routes an endpoint's address into the TUN and lets its packets
// pass the guard. Adding it once more is fine. The error wraps ErrAddressOwned
// when the namespace has the address itself.
func (s *Subnet) AddAddress(a netip.Addr) error {
	a = a.Unmap()
	own, err := s.conn.addrs(nil)
	if err != nil {
		return err
	}
	for _, p := range own {
		if p.Addr() == a {
			return fmt.Errorf("subnet %s: endpoint address %s: %w", s.cfg.ID, a, ErrAddressOwned)
		}
	}
	if err := s.guardAddress(a, true); err != nil {
		return err
	}
	if tun, err := s.conn.Link(s.TUN()); err == nil && tun.Up { // else Configure does it
		if err := s.conn.SetRoute(s.addressRoute(a)); err != nil {
			return err
		}
	}
	s.addrs[a] = true
	return nil
}

// RemoveAddress undoes AddAddress. From then on the guard drops the address's
// packets in both directions.
func (s *Subnet) RemoveAddress(a netip.Addr) error {
	a = a.Unmap()
	delete(s.addrs, a)
	return errors.Join(s.guardAddress(a, false), s.conn.DelRoute(s.addressRoute(a)))
}

// Addresses lists the endpoint addresses.
func (s *Subnet) Addresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(s.addrs))
	for a := range s.addrs {
		out = append(out, a)
	}
	return out
}
