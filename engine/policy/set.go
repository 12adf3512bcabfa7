package policy

import (
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

// NoRule is the rule index of a packet that no rule allows.
const NoRule = ^uint32(0)

// Set is the compiled policy of one endpoint. It is immutable and safe for
// concurrent use. A nil Set denies everything.
type Set struct {
	version uint32
	rules   []RuleInfo
	// tables[family][byProto[family][protocol]] answers; entry 0 is for
	// protocols that no rule names: only rules for all protocols match them.
	byProto [2][256]uint16
	tables  [2][]table
}

// RuleInfo names a rule.
type RuleInfo struct {
	Group string // the security group's name; empty if there is no such rule
	Index int    // position in the group's egress list, from 0
	Rule  api.Rule
}

// Version returns the Version that Compile was given; 0 for a nil Set.
func (s *Set) Version() uint32 {
	if s == nil {
		return 0
	}
	return s.version
}

// Rules returns the number of egress rules in all groups.
func (s *Set) Rules() int {
	if s == nil {
		return 0
	}
	return len(s.rules)
}

// Rule names the rule that a verdict told. It returns the zero RuleInfo for
// NoRule and for an index of another set.
func (s *Set) Rule(i uint32) RuleInfo {
	if s == nil || uint64(i) >= uint64(len(s.rules)) {
		return RuleInfo{}
	}
	return s.rules[i]
}

// DefaultEgress returns the egress rules of a new group: everything is allowed
// over IPv4, and over IPv6 too if the network has it. A group whose rules are
// all deleted denies everything; nothing fills an empty list with these.
func DefaultEgress(ipv6 bool) []api.Rule {
	rules := []api.Rule{{Protocol: "-1", CIDR: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}}
	if ipv6 {
		rules = append(rules, api.Rule{Protocol: "-1", CIDR: netip.PrefixFrom(netip.IPv6Unspecified(), 0)})
	}
	return rules
}

// Verdict decides for the first packet of a flow: OK and the rule that allows
// it (the first one in the order of groups and rules), or DeniedByPolicy and
// NoRule. Answers, and later packets of a flow, are not to be asked for: they
// pass because their flow exists. A fragment without its ports is denied. It
// allocates nothing and is safe for concurrent use.
func (s *Set) Verdict(p *packet.Parsed) (rule uint32, r packet.Reason) {
	var family int
	switch p.Version {
	case 4:
		family = v4
	case 6:
		family = v6
	default:
		return NoRule, packet.DeniedByPolicy
	}
	var key uint16
	switch p.Proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		if !p.Transport {
			return NoRule, packet.DeniedByPolicy
		}
		key = p.DstPort
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if !p.Transport {
			return NoRule, packet.DeniedByPolicy
		}
		key = uint16(p.Type)<<8 | uint16(p.Code)
	}
	return s.decide(family, numberOf(family, &p.Dst), p.Proto, key)
}

// Allows decides for a flow that is known by its numbers and not by a packet:
// a connection that is dialled, a tracked flow that is looked at again after
// the rules changed, a question of an operator. key is the destination port,
// or ICMPKey of type and code; protocols with neither ignore it. The answer is
// the one that Verdict gives for such a packet.
func (s *Set) Allows(dst netip.Addr, proto uint8, key uint16) (rule uint32, r packet.Reason) {
	if !dst.IsValid() {
		return NoRule, packet.DeniedByPolicy
	}
	dst = dst.Unmap()
	family, b := familyOf(dst), dst.As16()
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, packet.ProtoICMPv6:
	default:
		key = 0
	}
	return s.decide(family, numberOf(family, &b), proto, key)
}

// ICMPKey returns the key that Allows takes for ICMP and ICMPv6.
func ICMPKey(icmpType, code uint8) uint16 { return uint16(icmpType)<<8 | uint16(code) }

func (s *Set) decide(family int, dst u128, proto uint8, key uint16) (uint32, packet.Reason) {
	if s == nil {
		return NoRule, packet.DeniedByPolicy
	}
	rule := s.tables[family][s.byProto[family][proto]].lookup(dst, key)
	if rule == NoRule {
		return NoRule, packet.DeniedByPolicy
	}
	return rule, packet.OK
}
