package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rule is one policy-routing rule of ours: what is set must match. It carries
// RouteProtocol.
type rule struct {
	priority    int
	family      int
	mark        uint32 // 0: any
	from, to    netip.Prefix
	iif         string
	proto       int    // IP protocol; 0: any
	sport       uint16 // 0: any
	dport       uint16
	table       int // 0 with unreachable
	unreachable bool
}

func (r rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Priority, n.Family, n.Protocol = r.priority, r.family, RouteProtocol
	n.Table, n.Mark, n.IifName, n.IPProto = r.table, r.mark, r.iif, r.proto
	if r.mark != 0 {
		full := ^uint32(0)
		n.Mask = &full
	}
	if r.from.IsValid() {
		n.Src = ipNet(r.from)
	}
	if r.to.IsValid() {
		n.Dst = ipNet(r.to)
	}
	if r.sport != 0 {
		n.Sport = netlink.NewRulePortRange(r.sport, r.sport)
	}
	if r.dport != 0 {
		n.Dport = netlink.NewRulePortRange(r.dport, r.dport)
	}
	if r.unreachable {
		n.Type, n.Table = unix.RTN_UNREACHABLE, unix.RT_TABLE_UNSPEC
	}
	return n
}

// addRule adds a rule; the same rule once more is no error.
func (c *Conn) addRule(r rule) error {
	if err := exists(c.h.RuleAdd(r.netlink())); err != nil {
		return fmt.Errorf("add rule %d: %w", r.priority, err)
	}
	return nil
}

// delOwnRules removes the rules with RouteProtocol whose priority lies in
// [lo, hi] and that keep does not list, in both families. It returns how many
// were removed.
func (c *Conn) delOwnRules(lo, hi int, keep []rule) (int, error) {
	n := 0
	for _, f := range families {
		rs, err := c.h.RuleList(f)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			if noFamily(err) {
				continue
			}
			return n, fmt.Errorf("list rules: %w", err)
		}
		for i := range rs {
			r := &rs[i]
			if r.Protocol != RouteProtocol || r.Priority < lo || r.Priority > hi || kept(r, f, keep) {
				continue
			}
			r.Family = f
			if err := gone(c.h.RuleDel(r)); err != nil {
				return n, fmt.Errorf("remove rule %d: %w", r.Priority, err)
			}
			n++
		}
	}
	return n, nil
}

// kept reports whether a rule read from the kernel is one of keep.
func kept(r *netlink.Rule, f int, keep []rule) bool {
	for i := range keep {
		k := keep[i].netlink()
		if keep[i].family == f && k.Priority == r.Priority && k.Mark == r.Mark && k.IifName == r.IifName &&
			k.IPProto == r.IPProto && prefixOf(k.Src) == prefixOf(r.Src) && prefixOf(k.Dst) == prefixOf(r.Dst) &&
			samePort(k.Sport, r.Sport) && samePort(k.Dport, r.Dport) {
			return true
		}
	}
	return false
}

func samePort(a, b *netlink.RulePortRange) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
