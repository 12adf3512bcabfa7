package config

import (
	"encoding/base64"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/fe919326/spillway/internal/ipam"
)

// hostPort says whether s is a host name or address and a port.
func hostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || strings.ContainsAny(host, "/@?#% ") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n != 0
}

func (d *decoder) names(n node, kind string, account func() string, most int) (out []string) {
	if d.list(n, most, func(n node) {
		name := d.name(n)
		if name != "" && slices.Contains(out, name) {
			d.wrong(n, "%s %q is given twice", kind, name)
			return
		}
		out = append(out, name)
		d.later = append(d.later, func(*File) { d.refer(kind, account(), name, n) })
	}); n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.wrong(n, "must name at least one %s", kind)
	}
	return out
}

// machine reads an entry of machines.
func (d *decoder) machine(n node) Machine {
	var m Machine
	d.object(n,
		field{"name", true, func(n node) { m.Name = d.name(n); d.define(object{"machine", "", m.Name}, n) }},
		field{"role", true, func(n node) { m.Role = d.choice(n, RoleEgress, RoleHost, RoleClient) }},
		field{"zone", false, func(n node) { m.Zone = d.name(n) }},
		field{"public_key", false, func(n node) { m.PublicKeys = append(m.PublicKeys, d.publicKey(n)) }},
		field{"public_keys", false, func(n node) {
			d.list(n, 64, func(n node) { m.PublicKeys = append(m.PublicKeys, d.publicKey(n)) })
		}},
		field{"address", false, func(n node) { m.Address = d.addrPort(n) }},
		field{"service", false, func(n node) { m.Service = d.name(n); d.refer("service", d.account, m.Service, n) }},
	)
	if (m.Role == RoleClient) != (m.Service != "") && m.Role != "" {
		d.wrong(n, "a client has a service, and nothing else has")
	}
	if m.Address.IsValid() && m.Address.Addr().IsUnspecified() {
		d.wrong(n, "address %s is nowhere: say where others reach the machine", m.Address)
	}
	d.later = append(d.later, func(f *File) {
		if len(m.PublicKeys) == 0 && m.Name != f.Machine {
			d.wrong(n, "machine %q needs a public_key", m.Name)
		}
	})
	return m
}

// publicKey reads a WireGuard key: 32 bytes as base64.
func (d *decoder) publicKey(n node) string {
	s, ok := d.text(n)
	if !ok {
		return ""
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	switch {
	case err != nil || len(b) != 32:
		// Not quoted back: it might be a private key in the wrong place.
		d.wrong(n, "is not a WireGuard public key: 44 characters of base64")
		return ""
	case !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }):
		d.wrong(n, "is the zero key")
		return ""
	}
	d.define(object{"public key", "", s}, n)
	return s
}

func (d *decoder) subnet(n node, zone string) Subnet {
	s := Subnet{PerEndpoint: 1}
	s.Account, s.Zone, s.Isolate, s.Claim = d.account, zone, "none", "arp"
	var nameAt, addressesAt, resolversAt node
	d.object(n,
		field{"name", true, func(n node) { s.Name = d.name(n); nameAt = n }},
		field{"account", false, func(n node) { s.Account = d.name(n) }},
		field{"zone", false, func(n node) { s.Zone = d.name(n) }},
		field{"cidrs", true, func(n node) {
			before := len(d.errs)
			s.CIDRs = d.cidrs(n)
			s.cidrsWrong = len(d.errs) > before
		}},
		field{"interface", false, func(n node) { s.Interface, s.hasInterface = d.ifname(n), true }},
		field{"tun", false, func(n node) { s.TUN = d.ifname(n) }},
		field{"isolate", false, func(n node) { s.Isolate = d.choice(n, "none", "netns") }},
		field{"driver", false, func(n node) { s.Driver = d.choice(n, "tun", "socket") }},
		field{"claim", false, func(n node) { s.Claim = d.claim(n) }},
		field{"addresses", false, func(n node) {
			addressesAt = n
			s.hasAddresses = true
			d.list(n, maxRefs, func(n node) {
				if r, ok := d.ipRange(n); ok {
					s.Ranges = append(s.Ranges, r)
					d.later = append(d.later, func(*File) { d.checkRange(n, r, &s) })
				}
			})
		}},
		field{"addresses_per_endpoint", false, func(n node) { s.PerEndpoint = d.number(n, 1, ipam.MaxAddresses) }},
		field{"resolvers", false, func(n node) {
			resolversAt = n
			d.list(n, 8, func(n node) { s.Resolvers = append(s.Resolvers, d.addr(n)) })
		}},
		field{"egress", false, func(n node) { s.Egress = d.name(n); d.later = append(d.later, d.isEgress(n, s.Egress)) }},
		field{"standby", false, func(n node) { s.Standby = d.name(n); d.later = append(d.later, d.isEgress(n, s.Standby)) }},
	)
	d.define(object{"subnet", s.Account, s.Name}, nameAt)
	if s.Standby != "" && s.Standby == s.Egress {
		d.wrong(n, "standby and egress are the same machine %q", s.Egress)
	}
	for i, r := range s.Ranges {
		for _, o := range s.Ranges[:i] {
			if r.Overlaps(o) {
				d.wrong(addressesAt, "%s and %s overlap", o, r)
			}
		}
	}
	for _, a := range s.Resolvers {
		if slices.ContainsFunc(s.Ranges, func(r ipam.Range) bool { return a.IsValid() && r.Contains(a) }) {
			d.wrong(resolversAt, "resolver %s is also in addresses, so that an endpoint could take it", a)
		}
	}
	return s
}

func (d *decoder) cidrs(n node) (out []netip.Prefix) {
	d.list(n, maxRefs, func(n node) {
		p := d.prefix(n, false)
		if !p.IsValid() {
			return
		}
		if i := slices.IndexFunc(out, p.Overlaps); i >= 0 {
			d.wrong(n, "%s overlaps %s", p, out[i])
			return
		}
		if a := p.Addr(); p.Bits() == 0 || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			d.wrong(n, "%s is not a subnet", p)
			return
		}
		out = append(out, p)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.wrong(n, "must hold at least one CIDR")
	}
	return out
}

func (d *decoder) claim(n node) string {
	s, ok := d.text(n)
	p, isExec := strings.CutPrefix(s, "exec:")
	p = strings.TrimSpace(p)
	switch {
	case !ok || s == "arp" || s == "none":
		return s
	case isExec && path.IsAbs(p) && path.Clean(p) == p && p != "/":
		return "exec:" + p
	}
	d.wrong(n, "%s is not arp, none or exec:/absolute/path", quote(s))
	return ""
}

func (d *decoder) ipRange(n node) (ipam.Range, bool) {
	s, ok := d.text(n)
	if !ok {
		return ipam.Range{}, false
	}
	if strings.Contains(s, "/") {
		d.wrong(n, "%s is a CIDR; write the first and the last address: 10.0.1.50-10.0.1.59", quote(s))
		return ipam.Range{}, false
	}
	r, err := ipam.ParseRange(s)
	if err != nil {
		d.wrong(n, "%v", err)
		return ipam.Range{}, false
	}
	return r, true
}

// checkRange: inside one CIDR of the subnet and off the addresses it keeps.
func (d *decoder) checkRange(n node, r ipam.Range, s *Subnet) {
	if s.cidrsWrong || len(s.CIDRs) == 0 {
		return // said already
	}
	i := slices.IndexFunc(s.CIDRs, func(p netip.Prefix) bool { return p.Contains(r.From) && p.Contains(r.To) })
	if i < 0 {
		d.wrong(n, "%s is not inside one of the subnet's cidrs %v", r, s.CIDRs)
		return
	}
	// What a subnet keeps lies at its two ends, within five addresses.
	p := s.CIDRs[i]
	for a, k := p.Masked().Addr(), 0; k < 5 && p.Contains(a); a, k = a.Next(), k+1 {
		if why := ipam.Reserved(p, a); why != "" && r.Contains(a) {
			d.wrong(n, "%s is %s of %s: an endpoint may not have it", a, why, p)
			return
		}
	}
	if a := ipam.Last(p); r.Contains(a) && ipam.Reserved(p, a) != "" {
		d.wrong(n, "%s is %s of %s: an endpoint may not have it", a, ipam.Reserved(p, a), p)
	}
}

// isEgress checks that a subnet's machine exists and is an egress.
func (d *decoder) isEgress(n node, name string) func(*File) {
	return func(f *File) {
		if name == "" || f.isEgress(name) {
			return
		}
		d.wrong(n, "machine %q is not an egress in this file", name)
	}
}

func (d *decoder) connector(n node) Connector {
	c := Connector{Account: d.account}
	account := func() string { return c.Account }
	var nameAt node
	d.object(n,
		field{"name", true, func(n node) { c.Name = d.name(n); nameAt = n }},
		field{"account", false, func(n node) { c.Account = d.name(n) }},
		field{"subnets", true, func(n node) { c.Subnets = d.names(n, "subnet", account, 16) }},
		field{"security_groups", true, func(n node) { c.SecurityGroups = d.names(n, "security group", account, 16) }},
	)
	d.define(object{"connector", c.Account, c.Name}, nameAt)
	d.later = append(d.later, func(f *File) { d.checkConnector(n, f, &c) })
	return c
}

func (d *decoder) service(n node) Service {
	s := Service{Account: d.account}
	var nameAt, connectorAt node
	d.object(n,
		field{"name", true, func(n node) { s.Name = d.name(n); nameAt = n }},
		field{"account", false, func(n node) { s.Account = d.name(n) }},
		field{"egress", false, func(n node) { s.Egress = d.choice(n, "VPC", "DEFAULT") }},
		field{"connector", false, func(n node) { s.Connector = d.name(n); connectorAt = n }},
	)
	d.define(object{"service", s.Account, s.Name}, nameAt)
	switch {
	case s.Egress == "" && connectorAt.Node != nil:
		s.Egress = "VPC"
	case s.Egress == "":
		s.Egress = "DEFAULT"
	case s.Egress == "VPC" && connectorAt.Node == nil:
		d.wrong(n, "egress: VPC needs a connector")
	case s.Egress == "DEFAULT" && connectorAt.Node != nil:
		d.wrong(connectorAt, "egress: DEFAULT uses no connector; remove the connector, or write egress: VPC")
	}
	if connectorAt.Node != nil {
		d.refer("connector", s.Account, s.Connector, connectorAt)
	}
	return s
}
