package spill

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/fe919326/spillway/internal/lab/netlab"
)

// Pair is an egress and a host that know each other from a file, on the
// lab's first egress box and its host box.
type Pair struct {
	Egress, Host *Node
	Lab          *netlab.Lab

	Isolate string // "none" (default) or "netns"
	Claim   string // "arp" (default), "none" or "exec:PATH"
	// Policy is the YAML of security_groups, connectors and services;
	// default: DefaultPolicy.
	Policy string
	// Extra is YAML that both machines get as well.
	Extra string
}

// DefaultPolicy lets service web reach the lab's servers and nothing else.
const DefaultPolicy = `security_groups:
  - name: sg-lab
    egress:
      - { protocol: tcp, ports: [7, 53, 80, 5001], cidrs: [10.0.0.0/8, "fd00::/8"] }
      - { protocol: udp, ports: [7, 53], cidrs: [10.0.0.0/8, "fd00::/8"] }
      - { protocol: icmp, cidrs: [10.0.0.0/8] }
      - { protocol: icmpv6, cidrs: ["fd00::/8"] }
connectors:
  - { name: my-vpc-connector, subnets: [subnet-a], security_groups: [sg-lab] }
services:
  - { name: web, egress: VPC, connector: my-vpc-connector }
`

// Configure makes both machines' keys and writes their configurations. It may
// be called again with another policy.
func (p Pair) Configure() error {
	ek, err := p.Egress.Key("egress")
	if err != nil {
		return err
	}
	hk, err := p.Host.Key("host")
	if err != nil {
		return err
	}
	common := fmt.Sprintf(`machines:
  - { name: %s, role: egress, public_key: %q, address: "%v:51820" }
  - { name: %s, role: host, public_key: %q }
subnets:
  - { name: subnet-a, zone: a, cidrs: [%q, %q], interface: %s, isolate: %s, driver: tun, claim: %q, egress: %s,
      addresses: [10.0.1.50-10.0.1.59, "fd00:1::50-fd00:1::59"], resolvers: [%v] }
%s%s`, p.Egress.Name, ek, p.Lab.Egress[0].Addr4, p.Host.Name, hk,
		netlab.SubnetCIDR4.String(), netlab.SubnetCIDR6.String(), netlab.EgressLink,
		cmp.Or(p.Isolate, "none"), cmp.Or(p.Claim, "arp"), p.Egress.Name, netlab.Resolver4,
		cmp.Or(p.Policy, DefaultPolicy), p.Extra)
	log := fmt.Sprintf("log: { flow_log: %s, format: json, interval: 1s }\n", p.Egress.FlowLog())
	return errors.Join(p.Egress.Configure(log+common), p.Host.Configure(common))
}
