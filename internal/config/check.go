package config

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/policy"
	"github.com/fe919326/spillway/internal/ipam"
)

// check looks at the file as a whole: names that must exist, addresses that
// must not collide, rules that must compile.
func (d *decoder) check(f *File) {
	f.assignEgress()
	for i := 0; i < len(d.later); i++ {
		d.later[i](f)
	}
	d.checkReferences()
	d.checkSubnets(f)
	for i := range f.SecurityGroups {
		d.checkRules(&f.SecurityGroups[i], f.PrefixLists)
	}
	d.checkReach(f)
}

func (d *decoder) checkReferences() {
	for _, r := range d.refs {
		if _, ok := d.defined[r.object]; ok {
			continue
		}
		var known []string
		for o := range d.defined {
			if o.kind == r.kind && o.account == r.account {
				known = append(known, o.name)
			}
		}
		slices.Sort(known)
		in := ""
		if r.account != d.account {
			in = " in account " + r.account
		}
		if near := nearest(r.name, known); near != "" {
			d.errorf(r.at, r.key, "there is no %s %q%s; did you mean %q?", r.kind, r.name, in, near)
		} else {
			d.errorf(r.at, r.key, "there is no %s %q%s", r.kind, r.name, in)
		}
	}
}

// isEgress says whether the file knows the machine as an egress.
func (f *File) isEgress(name string) bool {
	if name == f.Machine && f.HasRole(RoleEgress) {
		return true
	}
	return slices.ContainsFunc(f.Machines, func(m Machine) bool { return m.Name == name && m.Role == RoleEgress })
}

// assignEgress gives every subnet without an egress the only one there is:
// this machine, or the one in machines.
func (f *File) assignEgress() {
	owner := ""
	if f.HasRole(RoleEgress) {
		owner = f.Machine
	} else {
		for _, m := range f.Machines {
			if m.Role != RoleEgress {
				continue
			}
			if owner != "" {
				owner = ""
				break
			}
			owner = m.Name
		}
	}
	for i := range f.Subnets {
		if f.Subnets[i].Egress == "" {
			f.Subnets[i].Egress = owner
		}
	}
}

func (d *decoder) checkSubnets(f *File) {
	for i := range f.Subnets {
		s := &f.Subnets[i]
		at := d.defined[object{"subnet", s.Account, s.Name}]
		if s.Egress == "" && f.Control.Address == "" {
			d.errorf(at, "", "subnet %q: no machine in this file owns it; say which with egress", s.Name)
		}
		if s.Standby != "" && s.Standby == s.Egress {
			d.errorf(at, "", "subnet %q: standby and egress are the same machine %q", s.Name, s.Egress)
		}
		if s.Egress == f.Machine && s.Driver != "socket" && !s.hasInterface {
			d.errorf(at, "", "subnet %q: key \"interface\" is missing: the link of this machine to the subnet", s.Name)
		}
		if len(s.Ranges) == 0 && s.Driver != "socket" && !s.hasAddresses {
			d.errorf(at, "", "subnet %q: key \"addresses\" is missing: what endpoints may take", s.Name)
		}
		if len(s.Ranges) == 0 && s.hasAddresses {
			d.errorf(at, "", "subnet %q: addresses is empty", s.Name)
		}
		for _, p := range s.CIDRs {
			if k := slices.IndexFunc(f.InnerPools, p.Overlaps); k >= 0 {
				d.errorf(at, "", "subnet %q: %s overlaps the inner pool %s; set inner_pool to something else", s.Name, p, f.InnerPools[k])
			}
		}
		for j := range f.Subnets[:i] {
			d.checkPair(&f.Subnets[j], s, at)
		}
	}
}

// checkPair: two subnets of one machine in one namespace must not overlap.
func (d *decoder) checkPair(a, b *Subnet, at pos) {
	if a.Egress != b.Egress {
		return
	}
	for _, r := range b.Ranges {
		if a.Interface == b.Interface && slices.ContainsFunc(a.Ranges, r.Overlaps) {
			d.errorf(at, "", "subnet %q: addresses %s are also those of subnet %q on the same interface", b.Name, r, a.Name)
			return
		}
	}
	if a.Isolate != "none" || b.Isolate != "none" {
		return
	}
	for _, p := range b.CIDRs {
		if i := slices.IndexFunc(a.CIDRs, p.Overlaps); i >= 0 && a.Interface != b.Interface {
			d.errorf(at, "", "subnet %q: %s overlaps %s of subnet %q on the same machine; give one of them isolate: netns", b.Name, p, a.CIDRs[i], a.Name)
			return
		}
		for _, r := range b.Ranges {
			if slices.ContainsFunc(a.Ranges, r.Overlaps) {
				d.errorf(at, "", "subnet %q: addresses %s are also those of subnet %q", b.Name, r, a.Name)
				return
			}
		}
	}
}

// checkRules has the policy compiler look at a group, and puts its errors
// where the rules stand.
func (d *decoder) checkRules(g *api.SecurityGroup, lists []api.PrefixList) {
	at := d.groupAt[object{"security group", g.Account, g.Name}]
	if at == nil || at.wrong {
		return // half a group would only give errors that mislead
	}
	for _, err := range flatten(policy.Validate(*g, lists...)) {
		var re *policy.RuleError
		switch {
		case errors.Is(err, policy.ErrUnknownList): // reported where the name stands
		case errors.As(err, &re):
			rules := at.egress
			if re.Direction == "ingress" {
				rules = at.ingress
			}
			d.wrongRule(g, re, rules)
		default:
			d.wrong(at.name, "%v", err)
		}
	}
}

// wrongRule reports a rule where it stands; of two equal rules, it says where
// the other one is.
func (d *decoder) wrongRule(g *api.SecurityGroup, re *policy.RuleError, at []node) {
	all := g.Egress
	if re.Direction == "ingress" {
		all = g.Ingress
	}
	if re.Index >= len(at) || re.Index >= len(all) {
		d.errorf(pos{}, "", "%v", re) // not reached: the compiler numbers what it was given
		return
	}
	if errors.Is(re.Err, policy.ErrDuplicateRule) {
		for i := range re.Index {
			two := api.SecurityGroup{Account: g.Account, Egress: []api.Rule{all[i], all[re.Index]}}
			if errors.Is(policy.Validate(two), policy.ErrDuplicateRule) {
				d.wrong(at[re.Index], "says the same as the rule in line %d", at[i].Line)
				return
			}
		}
	}
	d.wrong(at[re.Index], "%v", re.Err)
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// checkConnector compiles what every endpoint of the connector would have, so
// that limits over several groups show here and not at run time.
func (d *decoder) checkConnector(n node, f *File, c *Connector) {
	var groups []api.SecurityGroup
	for _, g := range f.SecurityGroups {
		if g.Account == c.Account && slices.Contains(c.SecurityGroups, g.Name) {
			groups = append(groups, g)
		}
	}
	_, err := policy.Compile(policy.Input{Groups: groups, Lists: f.PrefixLists,
		Members: func(string) []netip.Prefix { return nil }})
	for _, e := range flatten(err) {
		for _, over := range []error{policy.ErrTooManyGroups, policy.ErrTooManyTotal, policy.ErrTooComplex} {
			if errors.Is(e, over) {
				d.wrong(n, "%v", e)
			}
		}
	}
}

// checkReach: one side of every pair of a host and an egress must know where
// the other one is.
func (d *decoder) checkReach(f *File) {
	if f.HasRole(RoleEgress) || !f.HasRole(RoleHost) {
		return
	}
	for _, m := range f.Machines {
		if m.Name == f.Machine && m.Address.IsValid() {
			return
		}
	}
	for _, m := range f.Machines {
		if m.Role == RoleEgress && !m.Address.IsValid() {
			d.errorf(d.defined[object{"machine", "", m.Name}], "", "machine %q has no address, and this one has none either: nobody can start the tunnel", m.Name)
		}
	}
}

// families says which families an endpoint of the subnet has.
func (s *Subnet) families() (v4, v6 bool) {
	for _, r := range s.Ranges {
		v4, v6 = v4 || r.From.Is4(), v6 || r.From.Is6()
	}
	if len(s.Ranges) == 0 { // socket driver: the machine's own addresses
		for _, p := range s.CIDRs {
			v4, v6 = v4 || p.Addr().Is4(), v6 || p.Addr().Is6()
		}
	}
	return v4, v6
}

// tasksBlocks is how many blocks a host needs for its tasks.
func (l Limits) tasksBlocks() int {
	return (l.MaxTasks + ipam.TasksPerBlock - 1) / ipam.TasksPerBlock
}
