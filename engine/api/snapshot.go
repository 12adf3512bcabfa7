// Package api holds spillway's public types: what a machine is told (Snapshot
// and its parts) and what it tells (Task, EndpointStatus, FlowRecord). It
// imports only the standard library, so that any program can speak to a
// spillway machine without linking the packet path.
package api

import (
	"net/netip"
	"time"
)

// Stamp orders snapshots. A machine takes a snapshot only if Cluster is the
// one it knows and Revision is not older than the one it has.
type Stamp struct {
	Cluster  string `json:"cluster"`  // identity of the store
	Revision int64  `json:"revision"` // grows with every change
	Epoch    int64  `json:"epoch"`    // grows with every change of ownership
}

// Snapshot is everything a machine must know to do its work: whole, never a
// difference, and without tasks. A configuration file makes one, and so does
// control; the engine cannot tell which.
type Snapshot struct {
	Stamp          Stamp           `json:"stamp"`
	Subnets        []Subnet        `json:"subnets"`
	SecurityGroups []SecurityGroup `json:"security_groups"`
	PrefixLists    []PrefixList    `json:"prefix_lists,omitempty"`
	Connectors     []Connector     `json:"connectors"`
	Services       []Service       `json:"services"`
	Endpoints      []Endpoint      `json:"endpoints"`
	Machines       []Machine       `json:"machines"`
	// InnerPools are the ranges all inner prefixes come from: no packet to an
	// address in them may ever pass an endpoint.
	InnerPools []netip.Prefix `json:"inner_pools"`
}

// Subnet is a private network that egress machines are attached to.
type Subnet struct {
	Account   string         `json:"account"`
	Name      string         `json:"name"`
	Zone      string         `json:"zone"`
	CIDRs     []netip.Prefix `json:"cidrs"`
	Interface string         `json:"interface"` // on the egress machine
	Isolate   string         `json:"isolate"`   // "none" or "netns"
	Driver    string         `json:"driver"`    // "tun" or "socket"
	Claim     string         `json:"claim"`     // "arp", "none" or "exec:PATH"
	Resolvers []netip.Addr   `json:"resolvers,omitempty"`
}

// SecurityGroup is a named list of rules. Only egress rules have an effect:
// ingress rules are stored and ignored.
type SecurityGroup struct {
	Account string `json:"account"`
	Name    string `json:"name"`
	Egress  []Rule `json:"egress"`
	Ingress []Rule `json:"ingress,omitempty"`
}

// Rule allows traffic; there is no rule that denies. Exactly one of CIDR,
// PrefixList and Group names the remote side.
type Rule struct {
	// Protocol is "-1" (all), "tcp", "udp", "icmp", "icmpv6" or a number from
	// "0" to "255".
	Protocol string `json:"protocol"`
	// FromPort and ToPort are the destination port range, both included, for
	// tcp and udp; for icmp and icmpv6 the type and the code, -1 meaning all.
	// Other protocols ignore them.
	FromPort    int          `json:"from_port"`
	ToPort      int          `json:"to_port"`
	CIDR        netip.Prefix `json:"cidr,omitzero"`
	PrefixList  string       `json:"prefix_list,omitempty"`
	Group       string       `json:"group,omitempty"`
	Description string       `json:"description,omitempty"` // at most 255 characters
}

// PrefixList is a named set of prefixes that rules refer to.
type PrefixList struct {
	Account    string         `json:"account"`
	Name       string         `json:"name"`
	Version    int            `json:"version"`
	MaxEntries int            `json:"max_entries"`
	Entries    []netip.Prefix `json:"entries"`
}

// Connector names the subnets and groups a service leaves by. It is
// immutable: a change is a new revision.
type Connector struct {
	Account        string   `json:"account"`
	Name           string   `json:"name"`
	Revision       int      `json:"revision"`
	Subnets        []string `json:"subnets"`
	SecurityGroups []string `json:"security_groups"`
	Active         bool     `json:"active"`
}

// Service is a named user of one connector.
type Service struct {
	Account   string `json:"account"`
	Name      string `json:"name"`
	Egress    string `json:"egress"`              // "VPC" or "DEFAULT"
	Connector string `json:"connector,omitempty"` // name; its newest active revision
}

// Endpoint is the shared egress endpoint of one (subnet, set of groups).
type Endpoint struct {
	ID             string            `json:"id"` // eni-…
	Account        string            `json:"account"`
	Subnet         string            `json:"subnet"`
	SecurityGroups []string          `json:"security_groups"` // sorted
	Addresses      []EndpointAddress `json:"addresses"`       // 1 to 8
	Services       []string          `json:"services"`        // who uses it
	// UDPMapping is "" (by destination when the preferred port is taken) or
	// "independent".
	UDPMapping string `json:"udp_mapping,omitempty"`
	// Deny is "" (refused tasks get an ICMP error) or "drop" (silence).
	Deny string `json:"deny,omitempty"`
	// Secret keys the choice of outside ports; 32 bytes.
	Secret []byte `json:"secret,omitempty"`
}

// EndpointAddress is one outside identity of an endpoint: an IPv4 address, an
// IPv6 address, or both. Ownership is per EndpointAddress.
type EndpointAddress struct {
	V4       netip.Addr   `json:"v4,omitzero"`
	V6       netip.Addr   `json:"v6,omitzero"`
	Owner    string       `json:"owner"`             // egress machine
	Standby  string       `json:"standby,omitempty"` // egress machine
	Epoch    int64        `json:"epoch"`
	Prefixes []Delegation `json:"prefixes"`
}

// Delegation lends an inner prefix to a machine: tasks of that machine that
// leave by the endpoint address take their inner addresses from it.
type Delegation struct {
	Machine string       `json:"machine"`
	Prefix  netip.Prefix `json:"prefix"`
	// Service restricts the prefix to one service; set for stock WireGuard
	// clients, whose prefix is a single address.
	Service string `json:"service,omitempty"`
}

// Machine is a peer: an egress, a host, or a stock WireGuard client.
type Machine struct {
	Name string `json:"name"`
	Role string `json:"role"` // "egress", "host" or "client"
	Zone string `json:"zone,omitempty"`
	// PublicKeys are WireGuard keys, base64, one per lane.
	PublicKeys []string `json:"public_keys"`
	// Address is where its WireGuard socket is reached; zero if it dials.
	Address netip.AddrPort `json:"address,omitzero"`
}

// Task is one attachment as the host that runs it tells it.
type Task struct {
	ID        string       `json:"id"`
	Account   string       `json:"account"`
	Service   string       `json:"service"`
	Endpoint  string       `json:"endpoint"`
	Inner     []netip.Addr `json:"inner"` // inner addresses, IPv4 first
	Outside   []netip.Addr `json:"outside"`
	Interface string       `json:"interface"`
	Netns     string       `json:"netns,omitempty"`
	MTU       int          `json:"mtu"`
	Attached  time.Time    `json:"attached"`
	// Steps is how long each step of the attach took, in microseconds.
	Steps map[string]int64 `json:"steps,omitempty"`

	Packets Counters          `json:"packets"`
	Bytes   Counters          `json:"bytes"`
	Drops   map[string]uint64 `json:"drops,omitempty"` // by reason
}

// EndpointStatus is an endpoint as the egress that owns it tells it.
type EndpointStatus struct {
	Endpoint
	Flows   int               `json:"flows"`
	Packets Counters          `json:"packets"`
	Bytes   Counters          `json:"bytes"`
	Drops   map[string]uint64 `json:"drops,omitempty"` // by reason
}

// Counters counts in both directions as seen from the task.
type Counters struct {
	Out uint64 `json:"out"`
	In  uint64 `json:"in"`
}

// Flow is one tracked connection, or one refused packet, with its inner and
// its outside tuple.
type Flow struct {
	Endpoint string         `json:"endpoint"`
	Task     string         `json:"task,omitempty"` // id where known, else the inner address
	Protocol string         `json:"protocol"`
	Inner    netip.AddrPort `json:"inner"`
	Outside  netip.AddrPort `json:"outside,omitzero"`
	Remote   netip.AddrPort `json:"remote"`
	State    string         `json:"state,omitempty"`
	Reason   string         `json:"reason"` // "ok" or why it was refused
	Packets  Counters       `json:"packets"`
	Bytes    Counters       `json:"bytes"`
	Start    time.Time      `json:"start"`
	Last     time.Time      `json:"last"`
	IdleFor  float64        `json:"idle_seconds"`
}
