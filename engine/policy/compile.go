package policy

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/fe919326/spillway/engine/api"
)

// Input is what a Set is compiled from.
type Input struct {
	// Groups are the security groups of one endpoint, each name once. None
	// means that everything is denied.
	Groups []api.SecurityGroup
	// Lists are the prefix lists that rules may refer to. Lists of other
	// accounts than a group's are invisible to it.
	Lists []api.PrefixList
	// Members returns the private addresses of the endpoints in a group, as
	// prefixes. Called once for every group that a rule refers to; nil means
	// that all groups are empty.
	Members func(group string) []netip.Prefix
	// Version is told by Set.Version, for flows to remember. Any number.
	Version uint32
	// Limits bound the groups; the zero value is the default.
	Limits Limits
}

// maxRanges bounds the port ranges and the address segments of one Set, and by
// that its memory to some 40 MB. The limits keep ordinary rules under a
// hundredth of it; only very many references to overlapping groups get near.
const maxRanges = 1 << 20

// keyRange is a rule's range of ports, or of ICMP types and codes.
type keyRange struct{ lo, hi uint16 }

// Compile checks the groups and returns their Set. On error, which names every
// wrong rule (up to 20), there is no Set: the caller keeps the one it has.
func Compile(in Input) (*Set, error) {
	limits, err := in.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	if len(in.Groups) > limits.Groups {
		return nil, fmt.Errorf("%w: %d of %d", ErrTooManyGroups, len(in.Groups), limits.Groups)
	}
	c := compiler{members: make(map[string][]netip.Prefix)}
	var p problems
	names := make(map[string]bool, len(in.Groups))
	lists := make(map[string]map[string]*list)
	heaviest := 0
	for i := range in.Groups {
		g := &in.Groups[i]
		if names[g.Name] {
			p.add(fmt.Errorf("security group %q: %w", g.Name, ErrDuplicateName))
			continue
		}
		names[g.Name] = true
		known, ok := lists[g.Account]
		if !ok {
			known = listsOf(g.Account, in.Lists, &p)
			lists[g.Account] = known
		}
		normals, weight, err := checkRules(g, "egress", g.Egress, known, limits)
		if err != nil {
			p.add(err)
			continue
		}
		heaviest = max(heaviest, weight)
		for j, n := range normals {
			c.infos = append(c.infos, RuleInfo{Group: g.Name, Index: j, Rule: storedRule(&g.Egress[j], n)})
			p.add(c.addRule(n, known, in.Members))
		}
	}
	if heaviest*len(in.Groups) > limits.Total {
		p.add(fmt.Errorf("%w: %d x %d is more than %d", ErrTooManyTotal, heaviest, len(in.Groups), limits.Total))
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	return c.build(in.Version)
}

// storedRule is a rule as it is kept and shown: host bits cleared.
func storedRule(r *api.Rule, n normal) api.Rule {
	s := *r
	s.CIDR = n.cidr
	return s
}

// compiler holds the rules of all groups, numbered through.
type compiler struct {
	infos   []RuleInfo
	keys    []keyRange
	protos  []int16
	remotes [][]netip.Prefix
	members map[string][]netip.Prefix
	left    int // ranges that may still be made
}

func (c *compiler) addRule(n normal, lists map[string]*list, members func(string) []netip.Prefix) error {
	var remotes []netip.Prefix
	switch {
	case n.list != "":
		remotes = lists[n.list].entries
	case n.group != "":
		known, ok := c.members[n.group]
		if !ok && members != nil {
			for _, m := range members(n.group) {
				masked, err := maskPrefix(m)
				if err != nil {
					return fmt.Errorf("member of security group %q: %w", n.group, err)
				}
				known = append(known, masked)
			}
			c.members[n.group] = known
		}
		remotes = known
	default:
		remotes = []netip.Prefix{n.cidr}
	}
	c.keys = append(c.keys, keyRange{n.lo, n.hi})
	c.protos = append(c.protos, n.proto)
	c.remotes = append(c.remotes, remotes)
	return nil
}

// build makes the tables: per family one for protocols that no rule names, and
// one per protocol that some rule names.
func (c *compiler) build(version uint32) (*Set, error) {
	s := &Set{version: version, rules: c.infos}
	c.left = maxRanges
	for family := range s.tables {
		protos := []int16{allProtocols}
		for i, proto := range c.protos {
			if proto != allProtocols && c.hasFamily(i, family) && !slices.Contains(protos, proto) {
				protos = append(protos, proto)
			}
		}
		for i, proto := range protos {
			t, err := c.newTable(family, proto)
			if err != nil {
				return nil, err
			}
			s.tables[family] = append(s.tables[family], t)
			if proto != allProtocols {
				s.byProto[family][proto] = uint16(i)
			}
		}
	}
	return s, nil
}

func (c *compiler) hasFamily(rule, family int) bool {
	return slices.ContainsFunc(c.remotes[rule], func(p netip.Prefix) bool { return familyOf(p.Addr()) == family })
}

// edge is where a rule's prefix starts or has ended.
type edge struct {
	at    u128
	rule  uint32
	delta int32
}

// newTable sweeps over the address space from edge to edge, with the set of
// rules that cover the place it is at as a bit set. Places with equal sets
// share their port ranges.
func (c *compiler) newTable(family int, proto int16) (table, error) {
	var edges []edge
	for i := range c.remotes {
		if c.protos[i] != allProtocols && c.protos[i] != proto {
			continue
		}
		for _, p := range c.remotes[i] {
			if familyOf(p.Addr()) != family {
				continue
			}
			first, last := bounds(p)
			edges = append(edges, edge{first, uint32(i), 1})
			if end, ok := last.next(family); ok {
				edges = append(edges, edge{end, uint32(i), -1})
			}
		}
		if len(edges) > 2*maxRanges {
			return table{}, ErrTooComplex
		}
	}
	slices.SortFunc(edges, func(a, b edge) int {
		switch {
		case a.at.less(b.at):
			return -1
		case b.at.less(a.at):
			return 1
		}
		return 0
	})
	var (
		t      table
		cover  = make([]int32, len(c.remotes)) // how often a rule covers the place
		active = make([]uint64, (len(c.remotes)+63)/64)
		spans  = make(map[string]span)
		key    []byte
		rules  []uint32
	)
	emit := func(at u128) error {
		key = key[:0]
		for _, w := range active {
			key = binary.LittleEndian.AppendUint64(key, w)
		}
		s, ok := spans[string(key)]
		if !ok {
			rules = rules[:0]
			for i, w := range active {
				for ; w != 0; w &= w - 1 {
					rules = append(rules, uint32(i*64+bits.TrailingZeros64(w)))
				}
			}
			off := len(t.ports)
			t.ports = paint(t.ports, rules, c.keys)
			s = span{uint32(off), uint32(len(t.ports) - off)}
			spans[string(key)] = s
			c.left -= int(s.n)
		}
		if n := len(t.spans); n > 0 && t.spans[n-1] == s {
			return nil
		}
		t.starts = append(t.starts, at)
		t.spans = append(t.spans, s)
		if c.left--; c.left < 0 {
			return ErrTooComplex
		}
		return nil
	}
	if len(edges) == 0 || edges[0].at != (u128{}) {
		if err := emit(u128{}); err != nil {
			return table{}, err
		}
	}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			e := edges[i]
			cover[e.rule] += e.delta
			if cover[e.rule] > 0 {
				active[e.rule/64] |= 1 << (e.rule % 64)
			} else {
				active[e.rule/64] &^= 1 << (e.rule % 64)
			}
		}
		if err := emit(at); err != nil {
			return table{}, err
		}
	}
	t.starts, t.spans, t.ports = slices.Clip(t.starts), slices.Clip(t.spans), slices.Clip(t.ports)
	t.index()
	return t, nil
}
