package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/fe919326/spillway/engine/api"
)

func (d *decoder) group(n node) api.SecurityGroup {
	g := api.SecurityGroup{Account: d.account, Egress: []api.Rule{}}
	at, before := &groupPos{}, len(d.errs)
	account := func() string { return g.Account }
	rules := func(to *[]api.Rule, where *[]node) func(node) {
		return func(n node) {
			d.list(n, maxRules, func(n node) {
				for _, r := range d.rule(n, account) {
					*to = append(*to, r)
					*where = append(*where, n)
				}
			})
		}
	}
	d.object(n,
		field{"name", true, func(n node) { g.Name = d.name(n); at.name = n }},
		field{"account", false, func(n node) { g.Account = d.name(n) }},
		field{"egress", true, rules(&g.Egress, &at.egress)}, // [] lets nothing leave, so it must be said
		field{"ingress", false, rules(&g.Ingress, &at.ingress)},
	)
	o := object{"security group", g.Account, g.Name}
	d.define(o, at.name)
	d.groupAt[o] = at
	at.wrong = len(d.errs) > before
	return g
}

// groupPos is where a group and its rules stand; a rule with several ports or
// remotes stands in the same place several times.
type groupPos struct {
	name            node
	egress, ingress []node
	wrong           bool // errors in it were reported already
}

// rule reads one rule and writes it out: one api.Rule for every pair of a
// port range and a remote side.
func (d *decoder) rule(n node, account func() string) (out []api.Rule) {
	var (
		r              api.Rule
		ports          = []PortRange{{0, 65535}}
		typ, code      = -1, -1
		remotes        []api.Rule
		hasPorts, icmp bool
	)
	remote := func(kind string, most int, add func(node) api.Rule) func(node) {
		return func(n node) { d.list(n, most, func(n node) { remotes = append(remotes, add(n)) }) }
	}
	d.object(n,
		field{"protocol", true, func(n node) { r.Protocol = d.protocol(n) }},
		field{"ports", false, func(n node) { ports, hasPorts = d.ports(n), true }},
		field{"type", false, func(n node) { typ, icmp = d.number(n, -1, 255), true }},
		field{"code", false, func(n node) { code, icmp = d.number(n, -1, 255), true }},
		field{"cidrs", false, remote("cidr", maxRules, func(n node) api.Rule { return api.Rule{CIDR: d.prefix(n, true)} })},
		field{"prefix_lists", false, remote("prefix list", maxRefs, func(n node) api.Rule {
			name := d.name(n)
			d.later = append(d.later, func(*File) { d.refer("prefix list", account(), name, n) })
			return api.Rule{PrefixList: name}
		})},
		field{"groups", false, remote("security group", maxRefs, func(n node) api.Rule {
			name := d.name(n)
			d.later = append(d.later, func(*File) { d.refer("security group", account(), name, n) })
			return api.Rule{Group: name}
		})},
		field{"description", false, func(n node) {
			s, ok := d.text(n)
			if ok && utf8.RuneCountInString(s) > 255 {
				d.wrong(n, "has %d characters; the most is 255", utf8.RuneCountInString(s))
			}
			r.Description = s
		}},
	)
	isICMP := r.Protocol == "icmp" || r.Protocol == "icmpv6"
	switch {
	case hasPorts && r.Protocol != "" && r.Protocol != "tcp" && r.Protocol != "udp":
		d.wrong(n, "ports belong to tcp and udp, not to protocol %s", r.Protocol)
	case icmp && r.Protocol != "" && !isICMP:
		d.wrong(n, "type and code belong to icmp and icmpv6, not to protocol %s", r.Protocol)
	case typ == -1 && code != -1:
		d.wrong(n, "code without a type")
	case len(remotes) == 0:
		d.wrong(n, "the rule names no remote side: give cidrs, prefix_lists or groups")
	case len(remotes)*len(ports) > maxRules:
		d.wrong(n, "the rule stands for %d rules; the most is %d", len(remotes)*len(ports), maxRules)
		return nil
	}
	if isICMP {
		r.FromPort, r.ToPort = typ, code
	}
	for _, to := range remotes {
		to.Protocol, to.Description = r.Protocol, r.Description
		if r.Protocol != "tcp" && r.Protocol != "udp" {
			to.FromPort, to.ToPort = r.FromPort, r.ToPort
			out = append(out, to)
			continue
		}
		for _, p := range ports {
			to.FromPort, to.ToPort = int(p.From), int(p.To)
			out = append(out, to)
		}
	}
	return out
}

// protocol reads a name, -1 or all, or an IANA number; names win over numbers
// so that equal rules look equal.
func (d *decoder) protocol(n node) string {
	var s string
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		s = strconv.Itoa(d.number(n, -1, 255))
	} else {
		var ok bool
		if s, ok = d.text(n); !ok {
			return ""
		}
	}
	switch s {
	case "all", "-1":
		return "-1"
	case "tcp", "udp", "icmp", "icmpv6":
		return s
	case "6":
		return "tcp"
	case "17":
		return "udp"
	case "1":
		return "icmp"
	case "58":
		return "icmpv6"
	}
	if v, err := strconv.ParseUint(s, 10, 8); err == nil && strconv.FormatUint(v, 10) == s {
		return s
	}
	d.wrong(n, "%s is not tcp, udp, icmp, icmpv6, all or a number from 0 to 255", quote(s))
	return ""
}

// ports reads a port, a range, or a list of these.
func (d *decoder) ports(n node) (out []PortRange) {
	if n.Kind != yaml.SequenceNode {
		return []PortRange{d.portRange(n)}
	}
	d.list(n, maxRefs, func(n node) { out = append(out, d.portRange(n)) })
	if len(n.Content) == 0 {
		d.wrong(n, "must hold at least one port")
	}
	return out
}

func (d *decoder) portRange(n node) PortRange {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		p := uint16(d.number(n, 0, math.MaxUint16))
		return PortRange{p, p}
	}
	s, ok := d.text(n)
	if !ok {
		return PortRange{}
	}
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	a, errA := strconv.ParseUint(strings.TrimSpace(from), 10, 16)
	b, errB := strconv.ParseUint(strings.TrimSpace(to), 10, 16)
	switch {
	case errA != nil || errB != nil:
		d.wrong(n, "%s is not a port or a range of ports, as in 5432 or 8000-8999", quote(s))
	case a > b:
		d.wrong(n, "range %s ends before it starts", quote(s))
	default:
		return PortRange{uint16(a), uint16(b)}
	}
	return PortRange{}
}

func (d *decoder) prefixList(n node) api.PrefixList {
	l := api.PrefixList{Account: d.account}
	var nameAt node
	d.object(n,
		field{"name", true, func(n node) { l.Name = d.name(n); nameAt = n }},
		field{"account", false, func(n node) { l.Account = d.name(n) }},
		field{"max_entries", false, func(n node) { l.MaxEntries = d.number(n, 1, maxEntries) }},
		field{"entries", true, func(n node) {
			d.list(n, maxEntries, func(n node) {
				p := d.prefix(n, true)
				if p.IsValid() && slices.Contains(l.Entries, p) {
					d.wrong(n, "%s is given twice", p)
				}
				l.Entries = append(l.Entries, p)
			})
		}},
	)
	d.define(object{"prefix list", l.Account, l.Name}, nameAt)
	if l.MaxEntries == 0 {
		l.MaxEntries = len(l.Entries)
	}
	if len(l.Entries) > l.MaxEntries {
		d.wrong(n, "has %d entries, but max_entries is %d", len(l.Entries), l.MaxEntries)
	}
	return l
}

func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}
