package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// TUNPrefix begins the names of the subnets' TUNs.
const TUNPrefix = "sw-"

// Isolation says how a subnet is kept apart from the machine.
type Isolation string

const (
	// IsolateNetNS gives the subnet a network namespace of its own: its
	// routes are that namespace's, it may overlap with other subnets, and
	// the machine's firewall and conntrack are not in the way.
	IsolateNetNS Isolation = "netns"
	// IsolateNone leaves the interface where it is: a routing table of its
	// own, reached only from the TUN, keeps the machine's routes (its
	// default route above all) out.
	IsolateNone Isolation = "none"
)

// SubnetTable is the first routing table for subnets with IsolateNone. Subnet
// n uses SubnetTable+2n (out of the TUN) and SubnetTable+2n+1 (into it).
const SubnetTable = 5400

// Priorities of the rules of subnets with IsolateNone, before the main table
// and before anything a task's rules would do.
const (
	prioSubnetOut  = 5340 // from the TUN -> the subnet's routes
	prioSubnetStop = 5341 // from the TUN, nothing else
	prioSubnetIn   = 5342 // from the subnet's interface -> endpoint addresses
)

// SubnetConfig says how a subnet is connected.
type SubnetConfig struct {
	ID      string    // short and unique on the machine, [a-z0-9-], at most 12 bytes; required
	Link    string    // the interface in the subnet; required
	Host    *NS       // where Link is; nil means the caller's namespace
	Isolate Isolation // required

	// For IsolateNetNS.
	RunDir  string         // where the namespace is bound, as RunDir/netns-ID; required
	Macvlan bool           // use a macvlan of Link (called Link too) and leave Link where it is
	Addrs   []netip.Prefix // for the interface inside; empty means the addresses that Link has, when it is moved
	Routes  []Route        // the subnet's route table; Dev may be "" for the interface. Connected routes come by themselves

	// For IsolateNone.
	Index       int            // 0-100: which tables; unique on the machine
	ExtraRoutes []netip.Prefix // destinations of Link's routes in the main table that are used besides connected ones; a default route must be named to be used
}

func (c *SubnetConfig) check() error {
	ok := c.ID != "" && len(TUNPrefix+c.ID) < unix.IFNAMSIZ && strings.Trim(c.ID, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	switch {
	case !ok:
		return fmt.Errorf("subnet: id %q: want 1-12 of a-z, 0-9, -", c.ID)
	case c.Link == "" || len(c.Link) >= unix.IFNAMSIZ:
		return fmt.Errorf("subnet %s: interface %q is not valid", c.ID, c.Link)
	case c.Isolate != IsolateNetNS && c.Isolate != IsolateNone:
		return fmt.Errorf("subnet %s: isolate %q: want netns or none", c.ID, c.Isolate)
	case c.Isolate == IsolateNetNS && c.RunDir == "":
		return fmt.Errorf("subnet %s: isolate netns needs a run directory", c.ID)
	case c.Index < 0 || c.Index > 100:
		return fmt.Errorf("subnet %s: index %d is not in 0-100", c.ID, c.Index)
	}
	return nil
}

// Subnet is the kernel's side of one subnet with the tun driver. Its methods
// are not safe for concurrent use.
type Subnet struct {
	cfg   SubnetConfig
	host  *NS // where Link was
	own   *NS // host when it was opened by us
	ns    *NS // where the TUN is: the subnet's own or host
	conn  *Conn
	addrs map[netip.Addr]bool
	moved []netip.Prefix
	// wasRouter: the machine forwarded for the interface before we came, so
	// that it goes on doing it (IsolateNone).
	wasRouter bool
	restore   [][2]string // sysctls as they were (IsolateNone)
	undo      []func() error
}

// OpenSubnet connects a subnet: afterwards NS is ready for the TUN called TUN.
// A namespace that an earlier process left for the same ID and RunDir is
// adopted. On error everything is undone.
func OpenSubnet(cfg SubnetConfig) (s *Subnet, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s = &Subnet{cfg: cfg, host: cfg.Host, addrs: map[netip.Addr]bool{}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("subnet %s: %w", cfg.ID, errors.Join(err, s.Close()))
			s = nil
		}
	}()
	if s.host == nil {
		if s.host, err = CurrentNS(); err != nil {
			return s, err
		}
		s.own = s.host
		s.undo = append(s.undo, s.own.Close)
	}
	if cfg.Isolate == IsolateNetNS {
		return s, s.openNetNS()
	}
	s.ns = s.host
	if s.conn, err = s.ns.Open(); err != nil {
		return s, err
	}
	s.undo = append(s.undo, s.conn.Close)
	if _, err = s.conn.Link(cfg.Link); err != nil {
		return s, err
	}
	// The guard comes first, so that AddAddress may come before the TUN.
	if err = s.rememberSettings(); err != nil {
		return s, err
	}
	return s, applySubnetGuard(s)
}

// NS is the namespace in which the TUN must be opened. borrowed: until Close.
func (s *Subnet) NS() *NS { return s.ns }

// TUN is the name that the TUN must have.
func (s *Subnet) TUN() string { return TUNPrefix + s.cfg.ID }

// Link is the name of the subnet's interface in NS.
func (s *Subnet) Link() string { return s.cfg.Link }

// WaitReady waits until the subnet's interface carries packets, IPv6 included.
// After a move that can take the kernel a second.
func (s *Subnet) WaitReady(ctx context.Context) error { return s.conn.WaitReady(ctx, s.cfg.Link) }

// netnsPath is where the subnet's namespace is bound.
func (s *Subnet) netnsPath() string { return s.cfg.RunDir + "/netns-" + s.cfg.ID }

func (s *Subnet) openNetNS() error {
	path := s.netnsPath()
	ns, err := OpenNS(path)
	if err != nil {
		// Nothing, or a file without a mount that a reboot left.
		if err = DeleteNS(path); err == nil {
			ns, err = CreateNS(path)
		}
	}
	if err != nil {
		return err
	}
	s.ns = ns
	s.undo = append(s.undo, func() error { return errors.Join(ns.Close(), DeleteNS(path)) })
	if s.conn, err = ns.Open(); err != nil {
		return err
	}
	s.undo = append(s.undo, s.conn.Close)
	if err := s.settings(); err != nil {
		return err
	}
	if _, err := s.conn.Link(s.cfg.Link); errors.Is(err, ErrNoLink) {
		if err := s.bringLink(); err != nil {
			return err
		}
	} else if err != nil {
		return err
	} else if !s.cfg.Macvlan { // adopted with the interface in it
		if len(s.cfg.Addrs) == 0 {
			if s.moved, err = globalAddrs(s.conn, s.cfg.Link); err != nil {
				return err
			}
		}
		s.undo = append(s.undo, s.giveBack)
	}
	for _, p := range append(append([]netip.Prefix{}, s.moved...), s.cfg.Addrs...) {
		if err := s.conn.AddAddr(s.cfg.Link, p); err != nil {
			return err
		}
	}
	if err := s.conn.SetUp(s.cfg.Link); err != nil {
		return err
	}
	for _, r := range s.cfg.Routes {
		if r.Dev == "" && !r.Unreachable {
			r.Dev = s.cfg.Link
		}
		if err := s.conn.SetRoute(r); err != nil {
			return err
		}
	}
	return applySubnetGuard(s) // comes first, so that AddAddress may come before the TUN
}

// settings makes the namespace forward, before it has an interface.
func (s *Subnet) settings() error {
	kv := [][2]string{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"}, {"net/ipv4/conf/default/send_redirects", "0"},
		{"net/ipv4/conf/all/accept_redirects", "0"}, {"net/ipv4/conf/default/accept_redirects", "0"},
		{"net/ipv6/conf/all/forwarding", "1"},
		// Without a usable link-local address the kernel does not ask for
		// neighbours on behalf of forwarded packets: that would be a pause
		// of seconds at every start. The address is the interface's own MAC.
		{"net/ipv6/conf/default/accept_dad", "0"},
		// A forwarding host listens to routers only with 2.
		{"net/ipv6/conf/default/accept_ra", "2"},
		{"net/ipv6/conf/all/accept_redirects", "0"}, {"net/ipv6/conf/default/accept_redirects", "0"},
	}
	return s.ns.Do(func() error {
		for _, e := range kv {
			err := writeSysctl(e[0], e[1])
			if err != nil && !(strings.HasPrefix(e[0], "net/ipv6/") && errors.Is(err, os.ErrNotExist)) {
				return err
			}
		}
		return nil
	})
}

// bringLink moves the interface in, or makes a macvlan of it.
func (s *Subnet) bringLink() error {
	host, err := s.host.Open()
	if err != nil {
		return err
	}
	defer host.Close()
	if s.cfg.Macvlan {
		return host.AddMacvlan(s.cfg.Link, s.cfg.Link, s.ns) // ends with the namespace
	}
	if len(s.cfg.Addrs) == 0 {
		if s.moved, err = globalAddrs(host, s.cfg.Link); err != nil {
			return err
		}
	}
	if err := host.MoveLink(s.cfg.Link, s.ns); err != nil {
		return err
	}
	s.undo = append(s.undo, s.giveBack)
	return nil
}

// globalAddrs are an interface's addresses that are not link-local.
func globalAddrs(c *Conn, link string) ([]netip.Prefix, error) {
	as, err := c.Addrs(link)
	return slices.DeleteFunc(as, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() }), err
}

// giveBack moves the interface back to where it was, with its addresses.
func (s *Subnet) giveBack() error {
	if err := s.conn.MoveLink(s.cfg.Link, s.host); err != nil {
		return err
	}
	host, err := s.host.Open()
	if err != nil {
		return err
	}
	defer host.Close()
	var errs []error
	for _, p := range s.moved {
		errs = append(errs, host.AddAddr(s.cfg.Link, p))
	}
	return errors.Join(append(errs, host.SetUp(s.cfg.Link))...)
}

// Configure connects the TUN, which must exist in NS by now, with the
// interface: MTU (bytes), forwarding, routes and the guard. Doing it again,
// also after the TUN was opened anew, is fine.
func (s *Subnet) Configure(mtu int) error {
	err := s.configure(mtu)
	if err != nil {
		return fmt.Errorf("subnet %s: %w", s.cfg.ID, err)
	}
	return nil
}

func (s *Subnet) configure(mtu int) error {
	if _, err := s.conn.Link(s.TUN()); err != nil {
		return err
	}
	if err := s.tunSettings(); err != nil {
		return err
	}
	if err := s.conn.SetMTU(s.TUN(), mtu); err != nil {
		return err
	}
	if err := s.conn.SetUp(s.TUN()); err != nil {
		return err
	}
	if s.cfg.Isolate == IsolateNone {
		if err := s.ownTable(); err != nil {
			return err
		}
	}
	for a := range s.addrs {
		if err := s.conn.SetRoute(s.addressRoute(a)); err != nil {
			return err
		}
	}
	return nil
}

// Close undoes everything: the TUN's routes, rules, the guard; a moved
// interface goes back with its addresses, the namespace is removed. Everything
// is tried; all errors are returned. It may be called again.
func (s *Subnet) Close() error {
	var errs []error
	if s.conn != nil && len(s.undo) > 0 {
		errs = append(errs, s.conn.DeleteLink(s.TUN()))
		if s.cfg.Isolate == IsolateNone {
			errs = append(errs, s.dropTable(), s.ns.SetSysctls(s.restore))
		}
		errs = append(errs, s.dropGuard())
	}
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i]())
	}
	s.undo = nil
	return errors.Join(errs...)
}
