package policy

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func group(name string, rules ...api.Rule) api.SecurityGroup {
	return api.SecurityGroup{Account: "a", Name: name, Egress: rules}
}

func rule(proto string, from, to int, cidr string) api.Rule {
	return api.Rule{Protocol: proto, FromPort: from, ToPort: to, CIDR: pfx(cidr)}
}

func compile(t testing.TB, in Input) *Set {
	t.Helper()
	s, err := Compile(in)
	if err != nil {
		t.Fatalf("Compile refused good rules: %v", err)
	}
	return s
}

// first builds the first packet of a flow. key is the port, or type<<8|code.
func first(proto uint8, dst string, key uint16) *packet.Parsed {
	a := netip.MustParseAddr(dst)
	p := &packet.Parsed{Version: 6, Dst: a.As16(), Proto: proto, Transport: true}
	if a.Is4() {
		p.Version = 4
	}
	if proto == packet.ProtoICMP || proto == packet.ProtoICMPv6 {
		p.Type, p.Code = uint8(key>>8), uint8(key)
	} else {
		p.DstPort = key
	}
	return p
}

func TestVerdict(t *testing.T) {
	lists := []api.PrefixList{
		{Account: "a", Name: "pl", MaxEntries: 10, Entries: []netip.Prefix{pfx("192.0.2.0/28"), pfx("2001:db8:1::/48")}},
		{Account: "other", Name: "theirs", Entries: []netip.Prefix{pfx("0.0.0.0/0")}},
	}
	members := func(g string) []netip.Prefix {
		if g == "sg-db" {
			return []netip.Prefix{pfx("10.9.0.5/32"), pfx("fd00:9::5/128")}
		}
		return nil
	}
	tests := []struct {
		name  string
		rules []api.Rule
		pkt   *packet.Parsed
		allow bool
	}{
		{"Q5 empty list denies all", nil, first(6, "10.0.0.1", 80), false},
		{"port in range", []api.Rule{rule("tcp", 80, 90, "10.0.0.0/8")}, first(6, "10.0.0.1", 90), true},
		{"port below range", []api.Rule{rule("tcp", 80, 90, "10.0.0.0/8")}, first(6, "10.0.0.1", 79), false},
		{"port above range", []api.Rule{rule("tcp", 80, 90, "10.0.0.0/8")}, first(6, "10.0.0.1", 91), false},
		{"port 65535", []api.Rule{rule("tcp", 65535, 65535, "10.0.0.0/8")}, first(6, "10.0.0.1", 65535), true},
		{"port 0", []api.Rule{rule("udp", 0, 0, "10.0.0.0/8")}, first(17, "10.0.0.1", 0), true},
		{"other protocol", []api.Rule{rule("tcp", 0, 65535, "10.0.0.0/8")}, first(17, "10.0.0.1", 80), false},
		{"protocol by number", []api.Rule{rule("6", 80, 80, "10.0.0.0/8")}, first(6, "10.0.0.1", 80), true},
		{"protocol -1", []api.Rule{rule("-1", 80, 80, "10.0.0.0/8")}, first(47, "10.0.0.1", 0), true},
		{"protocol -1 ignores ports", []api.Rule{rule("-1", 80, 80, "10.0.0.0/8")}, first(6, "10.0.0.1", 443), true},
		{"protocol all", []api.Rule{rule("all", 0, 0, "10.0.0.0/8")}, first(17, "10.0.0.1", 443), true},
		{"protocol 132 ignores ports", []api.Rule{rule("132", 80, 80, "10.0.0.0/8")}, first(132, "10.0.0.1", 443), true},
		{"last address", []api.Rule{rule("tcp", 80, 80, "10.0.0.0/30")}, first(6, "10.0.0.3", 80), true},
		{"behind last address", []api.Rule{rule("tcp", 80, 80, "10.0.0.0/30")}, first(6, "10.0.0.4", 80), false},
		{"Q7 host bits masked", []api.Rule{rule("tcp", 80, 80, "100.68.0.18/18")}, first(6, "100.68.63.255", 80), true},
		{"last address of IPv4", []api.Rule{rule("tcp", 80, 80, "255.255.255.255/32")}, first(6, "255.255.255.255", 80), true},
		{"all of IPv4", []api.Rule{rule("tcp", 80, 80, "0.0.0.0/0")}, first(6, "255.255.255.255", 80), true},
		{"all of IPv6", []api.Rule{rule("tcp", 80, 80, "::/0")}, first(6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 80), true},
		{"Q7 IPv4 rule, IPv6 packet", []api.Rule{rule("-1", 0, 0, "0.0.0.0/0")}, first(6, "2001:db8::1", 80), false},
		{"Q7 IPv6 rule, IPv4 packet", []api.Rule{rule("-1", 0, 0, "::/0")}, first(6, "10.0.0.1", 80), false},
		{"IPv6 /65", []api.Rule{rule("tcp", 80, 80, "2001:db8::/65")}, first(6, "2001:db8::7fff:ffff:ffff:ffff", 80), true},
		{"behind IPv6 /65", []api.Rule{rule("tcp", 80, 80, "2001:db8::/65")}, first(6, "2001:db8:0:0:8000::", 80), false},
		{"ICMP echo", []api.Rule{rule("icmp", 8, 0, "10.0.0.0/8")}, first(1, "10.0.0.1", 0x800), true},
		{"ICMP other code", []api.Rule{rule("icmp", 8, 0, "10.0.0.0/8")}, first(1, "10.0.0.1", 0x801), false},
		{"ICMP all codes", []api.Rule{rule("icmp", 8, -1, "10.0.0.0/8")}, first(1, "10.0.0.1", 0x8ff), true},
		{"ICMP all codes, other type", []api.Rule{rule("icmp", 8, -1, "10.0.0.0/8")}, first(1, "10.0.0.1", 0x900), false},
		{"ICMP all types force all codes", []api.Rule{rule("icmp", -1, 3, "10.0.0.0/8")}, first(1, "10.0.0.1", 0x1507), true},
		{"ICMPv6 echo", []api.Rule{rule("icmpv6", 128, -1, "::/0")}, first(58, "2001:db8::1", 0x8000), true},
		{"ICMP rule, ICMPv6 packet", []api.Rule{rule("icmp", -1, -1, "::/0")}, first(58, "2001:db8::1", 0x8000), false},
		{"prefix list IPv4", []api.Rule{{Protocol: "tcp", ToPort: 65535, PrefixList: "pl"}}, first(6, "192.0.2.15", 80), true},
		{"prefix list IPv6", []api.Rule{{Protocol: "tcp", ToPort: 65535, PrefixList: "pl"}}, first(6, "2001:db8:1::1", 80), true},
		{"outside prefix list", []api.Rule{{Protocol: "tcp", ToPort: 65535, PrefixList: "pl"}}, first(6, "192.0.2.16", 80), false},
		{"Q8 group member", []api.Rule{{Protocol: "tcp", FromPort: 5432, ToPort: 5432, Group: "sg-db"}}, first(6, "10.9.0.5", 5432), true},
		{"Q8 group member IPv6", []api.Rule{{Protocol: "tcp", FromPort: 5432, ToPort: 5432, Group: "sg-db"}}, first(6, "fd00:9::5", 5432), true},
		{"not a member", []api.Rule{{Protocol: "tcp", FromPort: 5432, ToPort: 5432, Group: "sg-db"}}, first(6, "10.9.0.6", 5432), false},
		{"group without members", []api.Rule{{Protocol: "-1", Group: "sg-empty"}}, first(6, "10.9.0.6", 5432), false},
		{"default group IPv4", DefaultEgress(false), first(17, "198.51.100.1", 53), true},
		{"default group without IPv6", DefaultEgress(false), first(17, "2001:db8::1", 53), false},
		{"default group with IPv6", DefaultEgress(true), first(17, "2001:db8::1", 53), true},
		{"fragment without ports", []api.Rule{rule("-1", 0, 0, "0.0.0.0/0")}, &packet.Parsed{Version: 4, Proto: 6, Dst: netip.MustParseAddr("10.0.0.1").As16()}, false},
		{"neither IPv4 nor IPv6", DefaultEgress(true), &packet.Parsed{Proto: 6, Transport: true}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, Input{Groups: []api.SecurityGroup{group("sg", tt.rules...)}, Lists: lists, Members: members})
			i, r := s.Verdict(tt.pkt)
			if got := r == packet.OK; got != tt.allow {
				t.Fatalf("Verdict = %v, want allowed: %v", r, tt.allow)
			}
			if tt.allow && s.Rule(i).Group != "sg" || !tt.allow && (i != NoRule || s.Rule(i).Group != "") {
				t.Errorf("verdict %v names rule %d %+v", r, i, s.Rule(i))
			}
		})
	}
}

func TestS12_IngressRulesHaveNoEffect(t *testing.T) {
	g := group("sg")
	g.Ingress = []api.Rule{rule("-1", 0, 0, "0.0.0.0/0"), rule("bogus", -7, 99999, "10.0.0.0/8")}
	s := compile(t, Input{Groups: []api.SecurityGroup{g}})
	if _, r := s.Verdict(first(6, "10.0.0.1", 80)); r != packet.DeniedByPolicy {
		t.Errorf("an ingress rule let an outbound flow pass: %v", r)
	}
}

func TestNilSetDenies(t *testing.T) {
	var s *Set
	if i, r := s.Verdict(first(6, "10.0.0.1", 80)); r != packet.DeniedByPolicy || i != NoRule {
		t.Errorf("nil Set: rule %d, %v; an engine without policy would be open", i, r)
	}
	if s.Version() != 0 || s.Rules() != 0 || s.Rule(0).Group != "" {
		t.Error("nil Set claims to have rules")
	}
	none := compile(t, Input{Version: 3})
	if _, r := none.Verdict(first(6, "10.0.0.1", 80)); r != packet.DeniedByPolicy || none.Version() != 3 {
		t.Errorf("Set without groups: %v", r)
	}
}

func TestQ6_UnionOfGroupsNamesTheRule(t *testing.T) {
	in := Input{Version: 7, Groups: []api.SecurityGroup{
		group("sg-a", rule("tcp", 80, 80, "10.0.0.0/8"), rule("tcp", 443, 443, "10.1.0.7/16")),
		group("sg-b", rule("tcp", 0, 65535, "10.1.0.0/16"), rule("udp", 53, 53, "10.0.0.2/32")),
	}}
	s := compile(t, in)
	for _, tt := range []struct {
		pkt   *packet.Parsed
		group string
		index int
	}{
		{first(6, "10.1.0.1", 80), "sg-a", 0},
		{first(6, "10.1.0.1", 443), "sg-a", 1},
		{first(6, "10.1.0.1", 22), "sg-b", 0},
		{first(17, "10.0.0.2", 53), "sg-b", 1},
		{first(6, "10.2.0.1", 22), "", 0},
	} {
		i, _ := s.Verdict(tt.pkt)
		if got := s.Rule(i); got.Group != tt.group || got.Index != tt.index {
			t.Errorf("%v port %d: named rule %s/%d, want %s/%d", netip.AddrFrom16(tt.pkt.Dst), tt.pkt.DstPort, got.Group, got.Index, tt.group, tt.index)
		}
	}
	if got := s.Rule(1).Rule.CIDR.String(); got != "10.1.0.0/16" {
		t.Errorf("stored CIDR %s still has host bits", got)
	}
	if s.Version() != 7 || s.Rules() != 4 {
		t.Errorf("version %d, %d rules", s.Version(), s.Rules())
	}
	in.Groups[0], in.Groups[1] = in.Groups[1], in.Groups[0]
	r := compile(t, in)
	for port := range 65536 {
		p := first(6, "10.1.0.1", uint16(port))
		_, a := s.Verdict(p)
		if _, b := r.Verdict(p); a != b {
			t.Fatalf("port %d: the order of groups changed the verdict from %v to %v", port, a, b)
		}
	}
}

func TestQ7_Q12_BadRulesAreNamed(t *testing.T) {
	many := func(n int, f func(i int) api.Rule) (rules []api.Rule) {
		for i := range n {
			rules = append(rules, f(i))
		}
		return rules
	}
	v4rule := func(i int) api.Rule { return rule("tcp", i, i, "10.0.0.0/8") }
	v6rule := func(i int) api.Rule { return rule("tcp", i, i, "fd00::/8") }
	lists := []api.PrefixList{
		{Account: "a", Name: "sixty", MaxEntries: 60, Entries: []netip.Prefix{pfx("10.0.0.0/8")}},
		{Account: "a", Name: "sixty-one", MaxEntries: 61, Entries: []netip.Prefix{pfx("10.0.0.0/8")}},
		{Account: "a", Name: "full", MaxEntries: 1, Entries: []netip.Prefix{pfx("10.0.0.0/8"), pfx("11.0.0.0/8")}},
		{Account: "a", Name: "huge", MaxEntries: 1 << 62, Entries: []netip.Prefix{pfx("10.0.0.0/8")}},
		{Account: "b", Name: "theirs", Entries: []netip.Prefix{pfx("10.0.0.0/8")}},
	}
	list := func(name string, port int) api.Rule {
		return api.Rule{Protocol: "tcp", FromPort: port, ToPort: port, PrefixList: name}
	}
	described := rule("tcp", 1, 1, "10.0.0.0/8")
	described.Description = strings.Repeat("é", 255)
	tooLong := described
	tooLong.Description += "x"
	both := rule("tcp", 1, 1, "10.0.0.0/8")
	both.Group = "sg-x"
	tests := []struct {
		name  string
		rules []api.Rule
		want  error
	}{
		{"from > to", []api.Rule{rule("tcp", 90, 80, "10.0.0.0/8")}, ErrPortOrder},
		{"port 65536", []api.Rule{rule("udp", 0, 65536, "10.0.0.0/8")}, ErrPort},
		{"port -1", []api.Rule{rule("tcp", -1, -1, "10.0.0.0/8")}, ErrPort},
		{"ports ignored", []api.Rule{rule("47", 9, -5, "10.0.0.0/8")}, nil},
		{"protocol name", []api.Rule{rule("sctp", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol empty", []api.Rule{rule("", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol 256", []api.Rule{rule("256", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol 999", []api.Rule{rule("999", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol +6", []api.Rule{rule("+6", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol 06", []api.Rule{rule("06", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"protocol -2", []api.Rule{rule("-2", 0, 0, "10.0.0.0/8")}, ErrProtocol},
		{"ICMP type 256", []api.Rule{rule("icmp", 256, 0, "10.0.0.0/8")}, ErrICMP},
		{"ICMP code -2", []api.Rule{rule("icmpv6", 1, -2, "::/0")}, ErrICMP},
		{"no remote", []api.Rule{{Protocol: "-1"}}, ErrRemote},
		{"two remotes", []api.Rule{both}, ErrRemote},
		{"mapped CIDR", []api.Rule{rule("-1", 0, 0, "::ffff:10.0.0.0/104")}, ErrCIDR},
		{"bad CIDR", []api.Rule{{Protocol: "-1", CIDR: netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33)}}, ErrCIDR},
		{"description of 255", []api.Rule{described}, nil},
		{"description of 256", []api.Rule{tooLong}, ErrDescription},
		{"duplicate by spelling", []api.Rule{rule("tcp", 1, 1, "10.0.0.1/8"), rule("6", 1, 1, "10.0.0.0/8")}, ErrDuplicateRule},
		{"duplicate but for ignored ports", []api.Rule{rule("-1", 1, 1, "10.0.0.0/8"), rule("all", 2, 2, "10.0.0.0/8")}, ErrDuplicateRule},
		{"60 + 60 rules", append(many(60, v4rule), many(60, v6rule)...), nil},
		{"61 rules IPv4", many(61, v4rule), ErrTooManyRules},
		{"61 rules IPv6", many(61, v6rule), ErrTooManyRules},
		{"Q8 group weighs one", append(many(59, v4rule), api.Rule{Protocol: "-1", Group: "x"}), nil},
		{"group weighs in both families", append(many(60, v6rule), api.Rule{Protocol: "-1", Group: "x"}), ErrTooManyRules},
		{"Q11 list of max 60", []api.Rule{list("sixty", 1)}, nil},
		{"Q11 list weighs its max", []api.Rule{list("sixty", 1), v4rule(1)}, ErrTooManyRules},
		{"list of max 61", []api.Rule{list("sixty-one", 1)}, ErrTooManyRules},
		{"huge lists do not overflow", many(9, func(i int) api.Rule { return list("huge", i) }), ErrTooManyRules},
		{"list over its max", []api.Rule{list("full", 1)}, ErrListSize},
		{"list of another account", []api.Rule{list("theirs", 1)}, ErrUnknownList},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := group("sg", tt.rules...)
			s, err := Compile(Input{Groups: []api.SecurityGroup{g}, Lists: lists})
			if !errors.Is(err, tt.want) || (err == nil) != (s != nil) {
				t.Errorf("Compile = %v, %v; want error %v and no half-applied set", s != nil, err, tt.want)
			}
			if err := Validate(g, lists...); !errors.Is(err, tt.want) {
				t.Errorf("Validate = %v, want %v", err, tt.want)
			}
			g.Ingress, g.Egress = g.Egress, nil
			if err := Validate(g, lists...); !errors.Is(err, tt.want) {
				t.Errorf("Validate of the same as ingress = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestRuleErrorNamesTheRule(t *testing.T) {
	_, err := Compile(Input{Groups: []api.SecurityGroup{
		group("sg-good", rule("tcp", 1, 1, "10.0.0.0/8")),
		group("sg-bad", rule("tcp", 1, 1, "10.0.0.0/8"), rule("tcp", 9, 1, "10.0.0.0/8")),
	}})
	var re *RuleError
	if !errors.As(err, &re) || re.Group != "sg-bad" || re.Index != 1 || re.Direction != "egress" {
		t.Errorf("error %v does not name egress rule 1 of sg-bad", err)
	}
	bad := make([]api.Rule, 10000)
	if text := Validate(group("sg", bad...)).Error(); len(text) > 10000 || !strings.Contains(text, "and 9980 more") {
		t.Errorf("10,000 bad rules make an error of %d bytes", len(text))
	}
}

func TestQ12_GroupLimits(t *testing.T) {
	groups := func(n, rules int) (gs []api.SecurityGroup) {
		for i := range n {
			g := group("sg" + strconv.Itoa(i))
			for j := range rules {
				g.Egress = append(g.Egress, rule("tcp", j, j, "10.0.0.0/8"))
			}
			gs = append(gs, g)
		}
		return gs
	}
	twice := append(groups(2, 1), groups(1, 1)...)
	for _, tt := range []struct {
		name   string
		groups []api.SecurityGroup
		limits Limits
		want   error
	}{
		{"16 groups of 60", groups(16, 60), Limits{}, nil},
		{"17 groups", groups(17, 1), Limits{}, ErrTooManyGroups},
		{"10 x 100", groups(10, 100), Limits{RulesPerGroup: 200}, nil},
		{"10 x 101", groups(10, 101), Limits{RulesPerGroup: 200}, ErrTooManyTotal},
		{"same group twice", twice, Limits{}, ErrDuplicateName},
		{"negative limit", nil, Limits{Groups: -1}, ErrLimits},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Compile(Input{Groups: tt.groups, Limits: tt.limits}); !errors.Is(err, tt.want) {
				t.Errorf("Compile: %v, want %v", err, tt.want)
			}
		})
	}
}

func TestMembersMustBePrefixes(t *testing.T) {
	in := Input{
		Groups:  []api.SecurityGroup{group("sg", api.Rule{Protocol: "-1", Group: "x"})},
		Members: func(string) []netip.Prefix { return []netip.Prefix{{}} },
	}
	if _, err := Compile(in); !errors.Is(err, ErrCIDR) {
		t.Errorf("a member that is no prefix: %v, want ErrCIDR", err)
	}
}

func TestValidateListAndNames(t *testing.T) {
	if err := ValidateList(api.PrefixList{Name: "pl", Entries: []netip.Prefix{{}}}); !errors.Is(err, ErrCIDR) {
		t.Errorf("list with an empty entry: %v", err)
	}
	l := api.PrefixList{Account: "a", Name: "pl"}
	if err := Validate(group("sg"), l, l); !errors.Is(err, ErrDuplicateName) {
		t.Errorf("two lists of one name: %v", err)
	}
}

// TestTooComplex builds what the limits allow but memory should not: rules
// that refer to many groups which overlap in a different way at every address.
func TestTooComplex(t *testing.T) {
	in := Input{Limits: Limits{RulesPerGroup: 1000, Total: 100000}}
	g := group("sg")
	for i := range 900 {
		g.Egress = append(g.Egress, api.Rule{Protocol: "tcp", FromPort: i * 64, ToPort: i*64 + 60, Group: strconv.Itoa(i)})
	}
	in.Groups = []api.SecurityGroup{g}
	in.Members = func(name string) (m []netip.Prefix) {
		k, _ := strconv.Atoi(name)
		for a := range 4000 {
			if (a*2654435761>>(k%20))&1 == 0 || a%900 == k {
				m = append(m, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(a >> 8), byte(a)}), 32))
			}
		}
		return m
	}
	if _, err := Compile(in); !errors.Is(err, ErrTooComplex) {
		t.Errorf("Compile: %v, want ErrTooComplex instead of memory without bound", err)
	}
}

func TestNoAllocs(t *testing.T) {
	s := compile(t, benchInput(60, 5))
	pkts := []*packet.Parsed{
		first(6, "10.3.7.20", 5007), first(17, "10.3.7.20", 53), first(1, "10.0.0.1", 0x800),
		first(6, "fd00::3:7", 5007), first(58, "fd00::3:7", 0x8000), first(47, "203.0.113.9", 0),
	}
	for _, p := range pkts {
		if n := testing.AllocsPerRun(100, func() { s.Verdict(p) }); n != 0 {
			t.Errorf("proto %d: %v allocations for a verdict", p.Proto, n)
		}
	}
}

// TestQ9_SwapNeverFailsBoth swaps two sets that both allow X, one of which
// allows Y too, while readers ask for X and Z: X always passes, Z never does.
func TestQ9_SwapNeverFailsBoth(t *testing.T) {
	wide := Input{Version: 1, Groups: []api.SecurityGroup{group("sg", rule("tcp", 443, 443, "10.0.0.0/24"), rule("tcp", 80, 80, "10.0.0.0/24"))}}
	narrow := Input{Version: 2, Groups: []api.SecurityGroup{group("sg", rule("tcp", 443, 443, "10.0.0.5/32"))}}
	var current atomic.Pointer[Set]
	current.Store(compile(t, wide))
	var stop atomic.Bool
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			x, z := first(6, "10.0.0.5", 443), first(6, "10.0.1.5", 443)
			for !stop.Load() {
				s := current.Load()
				if i, r := s.Verdict(x); r != packet.OK || s.Rule(i).Group != "sg" {
					t.Errorf("X was refused under version %d", s.Version())
					return
				}
				if _, r := s.Verdict(z); r != packet.DeniedByPolicy {
					t.Errorf("Z passed under version %d", s.Version())
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := 0; i < 2000 || asked.Load() < 10000; i++ {
		in := wide
		if i%2 == 0 {
			in = narrow
		}
		current.Store(compile(t, in))
	}
	stop.Store(true)
	wg.Wait()
}
