package hostnet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Destination is somewhere that a task may reach by its primary interface.
type Destination struct {
	Prefix netip.Prefix
	Port   uint16 // TCP and UDP port; 0: every port and protocol
}

// ParseDestination reads ADDRESS, CIDR, CIDR:PORT or, for IPv6 with a port,
// [CIDR]:PORT.
func ParseDestination(s string) (Destination, error) {
	host, port := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		in, rest, ok := strings.Cut(s[1:], "]")
		if !ok || (rest != "" && rest[0] != ':') {
			return Destination{}, fmt.Errorf("destination %q: want [CIDR]:PORT", s)
		}
		host, port = in, strings.TrimPrefix(rest, ":")
		if rest == ":" {
			return Destination{}, fmt.Errorf("destination %q: port is missing", s)
		}
	case strings.Count(s, ":") == 1:
		host, port, _ = strings.Cut(s, ":")
		if port == "" {
			return Destination{}, fmt.Errorf("destination %q: port is missing", s)
		}
	}
	var d Destination
	p, err := netip.ParsePrefix(host)
	if err != nil {
		a, aerr := netip.ParseAddr(host)
		if aerr != nil || a.Zone() != "" {
			return Destination{}, fmt.Errorf("destination %q: neither an address nor a CIDR", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		return Destination{}, fmt.Errorf("destination %q: write an IPv4 address as such", s)
	}
	d.Prefix = p.Masked()
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Destination{}, fmt.Errorf("destination %q: port must be 1-65535", s)
		}
		d.Port = uint16(n)
	}
	return d, nil
}

// String is the form that ParseDestination reads.
func (d Destination) String() string {
	switch {
	case d.Port == 0:
		return d.Prefix.String()
	case d.Prefix.Addr().Is6():
		return fmt.Sprintf("[%s]:%d", d.Prefix, d.Port)
	}
	return fmt.Sprintf("%s:%d", d.Prefix, d.Port)
}
