package policy

import (
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
)

// Limits bound what an endpoint's groups may hold. The zero value is the
// default.
type Limits struct {
	// RulesPerGroup is the largest weight of one group in one direction and
	// one address family. A CIDR weighs 1 in its family, a group reference 1
	// in both, a prefix list its MaxEntries in the families it has entries of
	// (in both while it is empty). Default 60.
	RulesPerGroup int
	// Groups is the largest number of groups of one endpoint. Default 16.
	Groups int
	// Total is the largest product of the heaviest group's weight and the
	// number of groups. Default 1,000.
	Total int
}

func (l Limits) withDefaults() (Limits, error) {
	if l.RulesPerGroup < 0 || l.Groups < 0 || l.Total < 0 {
		return l, ErrLimits
	}
	if l.RulesPerGroup == 0 {
		l.RulesPerGroup = 60
	}
	if l.Groups == 0 {
		l.Groups = 16
	}
	if l.Total == 0 {
		l.Total = 1000
	}
	return l, nil
}

// Validate checks one group as a configuration names it, ingress rules
// included, against the default Limits. lists are the prefix lists of the
// group's account (those of other accounts are ignored). The error names every
// wrong rule, up to 20; test it with errors.Is and errors.As.
func Validate(group api.SecurityGroup, lists ...api.PrefixList) error {
	limits, err := Limits{}.withDefaults()
	if err != nil {
		return err
	}
	var p problems
	known := listsOf(group.Account, lists, &p)
	_, _, bad := checkRules(&group, "egress", group.Egress, known, limits)
	p.add(bad)
	_, _, bad = checkRules(&group, "ingress", group.Ingress, known, limits)
	p.add(bad)
	return p.err()
}

// ValidateList checks one prefix list: valid CIDRs, and no more of them than
// MaxEntries (0 means as many as there are).
func ValidateList(list api.PrefixList) error {
	if list.MaxEntries < 0 || list.MaxEntries > 0 && len(list.Entries) > list.MaxEntries {
		return fmt.Errorf("prefix list %q: %w: %d of %d", list.Name, ErrListSize, len(list.Entries), list.MaxEntries)
	}
	for i, e := range list.Entries {
		if _, err := maskPrefix(e); err != nil {
			return fmt.Errorf("prefix list %q: entry %d: %w", list.Name, i, err)
		}
	}
	return nil
}

// list is a checked prefix list.
type list struct {
	entries  []netip.Prefix // masked
	weights  [2]int         // by family
	problems error          // why it cannot be used; nil if it can
}

// listsOf returns the lists of one account by name. A list that is wrong is
// kept with its error, which hurts only rules that refer to it.
func listsOf(account string, lists []api.PrefixList, p *problems) map[string]*list {
	known := make(map[string]*list, len(lists))
	for i := range lists {
		l := &lists[i]
		if l.Account != account {
			continue
		}
		if known[l.Name] != nil {
			p.add(fmt.Errorf("prefix list %q: %w", l.Name, ErrDuplicateName))
			continue
		}
		c := &list{problems: ValidateList(*l)}
		known[l.Name] = c
		if c.problems != nil {
			continue
		}
		weight := l.MaxEntries
		if weight == 0 {
			weight = len(l.Entries)
		}
		for _, e := range l.Entries {
			c.entries = append(c.entries, e.Masked())
			c.weights[familyOf(e.Addr())] = weight
		}
		if len(l.Entries) == 0 {
			c.weights = [2]int{weight, weight}
		}
	}
	return known
}

// checkRules checks one direction of a group and returns its rules in normal
// form and its weight (of the heavier family).
func checkRules(g *api.SecurityGroup, direction string, rules []api.Rule, lists map[string]*list, limits Limits) ([]normal, int, error) {
	var p problems
	wrong := func(i int, err error) {
		p.add(&RuleError{Group: g.Name, Direction: direction, Index: i, Err: err})
	}
	seen := make(map[normal]int, len(rules))
	normals := make([]normal, 0, len(rules))
	var weights [2]int
	for i := range rules {
		n, err := normalize(&rules[i])
		if err != nil {
			wrong(i, err)
			continue
		}
		if first, ok := seen[n]; ok {
			wrong(i, fmt.Errorf("%w: rule %d", ErrDuplicateRule, first))
			continue
		}
		seen[n] = i
		normals = append(normals, n)
		switch {
		case n.group != "":
			weights[v4]++
			weights[v6]++
		case n.list != "":
			l := lists[n.list]
			if l == nil {
				wrong(i, fmt.Errorf("%w: %q", ErrUnknownList, n.list))
				continue
			}
			if l.problems != nil {
				wrong(i, l.problems)
				continue
			}
			// Capped, so that no sum can overflow.
			weights[v4] = min(weights[v4]+min(l.weights[v4], limits.RulesPerGroup+1), limits.RulesPerGroup+1)
			weights[v6] = min(weights[v6]+min(l.weights[v6], limits.RulesPerGroup+1), limits.RulesPerGroup+1)
		default:
			weights[familyOf(n.cidr.Addr())]++
		}
	}
	for f, name := range [2]string{v4: "IPv4", v6: "IPv6"} {
		if weights[f] > limits.RulesPerGroup {
			p.add(fmt.Errorf("security group %q: %w: its %s rules for %s weigh more than %d",
				g.Name, ErrTooManyRules, direction, name, limits.RulesPerGroup))
		}
	}
	return normals, max(weights[v4], weights[v6]), p.err()
}
