package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
)

// tunnelSysctls keeps the kernel from configuring the tunnel by itself: no
// router advertisements, no link-local address, and no IPv6 where the task has
// none.
func (a *Attachment) tunnelSysctls() error {
	v6, v4 := "net/ipv6/conf/"+a.cfg.Interface+"/", "net/ipv4/conf/"+a.cfg.Interface+"/"
	return a.cfg.NS.Do(func() error {
		off := "1"
		if a.cfg.Addr6.IsValid() {
			off = "0"
		}
		for _, e := range [][2]string{
			{v6 + "accept_ra", "0"}, {v6 + "autoconf", "0"}, {v6 + "addr_gen_mode", "1"}, {v6 + "disable_ipv6", off},
		} {
			// A kernel without IPv6 has none of these.
			if err := writeSysctl(e[0], e[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return writeSysctl(v4+"accept_redirects", "0")
	})
}

func (a *Attachment) tunnelLink() error {
	name := a.cfg.Interface
	l, err := a.task.byName(name)
	if err != nil {
		return err
	}
	if err := a.task.h.LinkSetMTU(l, a.cfg.MTU); err != nil {
		return fmt.Errorf("interface %s: set MTU: %w", name, err)
	}
	for _, in := range a.cfg.inner() {
		if err := a.task.addAddr(name, netip.PrefixFrom(in, in.BitLen()), true); err != nil {
			return err
		}
	}
	if err := a.task.h.LinkSetUp(l); err != nil {
		return fmt.Errorf("interface %s: set up: %w", name, err)
	}
	return a.task.SetUp("lo")
}

func (a *Attachment) tunnelRoutes() error {
	for _, in := range a.cfg.inner() {
		err := a.task.SetRoute(Route{
			Dst: defaultRoute(family(in)), Dev: a.cfg.Interface, Src: in, Table: TaskTable, Metric: 10, Own: true,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// GuardCounters are what the guards of one task dropped. A guard that is not
// there (any more) has a nil map.
type GuardCounters struct {
	Inside  map[string]Counter            // by CounterInside…
	Outside map[string]map[string]Counter // by the host's interface, then by CounterOutside…
}

// Counters reads what the guards dropped.
func (a *Attachment) Counters() (GuardCounters, error) {
	var g GuardCounters
	in, err := a.task.counters(nftables.TableFamilyINet, insideTable)
	if gone(err) != nil {
		return g, err
	}
	if err == nil {
		g.Inside = in
	}
	for _, p := range a.peers {
		m, err := a.host.counters(nftables.TableFamilyNetdev, outsidePrefix+p)
		if gone(err) != nil {
			return g, err
		}
		if err == nil {
			if g.Outside == nil {
				g.Outside = map[string]map[string]Counter{}
			}
			g.Outside[p] = m
		}
	}
	return g, nil
}

// DetachOptions says what Detach leaves.
type DetachOptions struct {
	// KeepFailClosed leaves rules, unreachable routes and guards, so that
	// the task can still not send in clear.
	KeepFailClosed bool
}

// Detach removes what Prepare and Configure made, and the tunnel's interface,
// and closes the Attachment. It goes on after an error and returns all of
// them; things that are gone already are no error. The guards go last.
func (a *Attachment) Detach(o DetachOptions) error {
	errs := []error{a.task.DeleteLink(a.cfg.Interface)}
	if !o.KeepFailClosed {
		_, err := a.task.delOwnRules(prioMark, prioUnreachable, nil)
		errs = append(errs, err)
		for _, f := range families {
			err := a.task.DelRoute(Route{
				Dst: defaultRoute(f), Table: TaskTable, Metric: metricUnreachable, Unreachable: true, Own: true,
			})
			if !noFamily(err) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, a.task.delTable(nftables.TableFamilyINet, insideTable))
		for _, p := range a.peers {
			errs = append(errs, a.host.delTable(nftables.TableFamilyNetdev, outsidePrefix+p))
		}
	}
	errs = append(errs, a.Close())
	return errors.Join(errs...)
}
