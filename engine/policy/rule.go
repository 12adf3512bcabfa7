package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

// allProtocols is the protocol of a rule that matches every one.
const allProtocols = -1

// maxDescription is the longest description, in characters.
const maxDescription = 255

// normal is a rule in normal form: two rules that mean the same have equal
// normal forms. It is comparable, so that duplicates are found with a map.
type normal struct {
	proto int16 // allProtocols, or 0 to 255
	// lo and hi are the matching keys, both included: destination ports, or
	// type<<8|code for ICMP, or everything for protocols without either.
	lo, hi uint16
	cidr   netip.Prefix // masked; or
	list   string       // or
	group  string
}

// normalize checks r and brings it into normal form.
func normalize(r *api.Rule) (normal, error) {
	n := normal{hi: 0xffff, list: r.PrefixList, group: r.Group}
	if utf8.RuneCountInString(r.Description) > maxDescription {
		return n, ErrDescription
	}
	var err error
	if n.proto, err = parseProtocol(r.Protocol); err != nil {
		return n, err
	}
	switch n.proto {
	case packet.ProtoTCP, packet.ProtoUDP:
		if r.FromPort < 0 || r.FromPort > 65535 || r.ToPort < 0 || r.ToPort > 65535 {
			return n, fmt.Errorf("%w: %d-%d", ErrPort, r.FromPort, r.ToPort)
		}
		if r.FromPort > r.ToPort {
			return n, fmt.Errorf("%w: %d-%d", ErrPortOrder, r.FromPort, r.ToPort)
		}
		n.lo, n.hi = uint16(r.FromPort), uint16(r.ToPort)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if r.FromPort < -1 || r.FromPort > 255 || r.ToPort < -1 || r.ToPort > 255 {
			return n, fmt.Errorf("%w: type %d code %d", ErrICMP, r.FromPort, r.ToPort)
		}
		switch {
		case r.FromPort == -1: // all types: all codes, whatever ToPort says
		case r.ToPort == -1:
			n.lo = uint16(r.FromPort) << 8
			n.hi = n.lo | 0xff
		default:
			n.lo = uint16(r.FromPort)<<8 | uint16(r.ToPort)
			n.hi = n.lo
		}
	}
	set := 0
	for _, is := range [...]bool{r.CIDR != netip.Prefix{}, r.PrefixList != "", r.Group != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return n, ErrRemote
	}
	if (r.CIDR != netip.Prefix{}) {
		if n.cidr, err = maskPrefix(r.CIDR); err != nil {
			return n, err
		}
	}
	return n, nil
}

// maskPrefix clears the host bits of p. IPv4-mapped IPv6 prefixes are refused:
// nobody can tell which family they mean.
func maskPrefix(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%w: %v", ErrCIDR, p)
	}
	return p.Masked(), nil
}

// parseProtocol reads a protocol name or number. Numbers are plain decimal:
// no sign, no leading zero, so that one protocol has one spelling as a number.
func parseProtocol(s string) (int16, error) {
	switch strings.ToLower(s) {
	case "-1", "all":
		return allProtocols, nil
	case "tcp":
		return packet.ProtoTCP, nil
	case "udp":
		return packet.ProtoUDP, nil
	case "icmp":
		return packet.ProtoICMP, nil
	case "icmpv6":
		return packet.ProtoICMPv6, nil
	}
	n := int16(0)
	if len(s) == 0 || len(s) > 3 || len(s) > 1 && s[0] == '0' {
		return 0, badProtocol(s)
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, badProtocol(s)
		}
		n = n*10 + int16(s[i]-'0')
	}
	if n > 255 {
		return 0, badProtocol(s)
	}
	return n, nil
}

func badProtocol(s string) error {
	if len(s) > 40 {
		s = s[:40]
	}
	return fmt.Errorf("%w: %q", ErrProtocol, s)
}
