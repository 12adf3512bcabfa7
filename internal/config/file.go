package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/ipam"
)

// File is a configuration that has been checked: every reference exists and
// every value is in range. Fields that the file does not set have their
// defaults.
type File struct {
	Path string // as Load was told

	Machine  string // name of this machine
	Zone     string // "" if none
	Account  string // of everything that names no other; default "default"
	StateDir string // default /var/lib/spillway
	RunDir   string // default /run/spillway
	Store    string // "embedded" (default) or "etcd://HOST:PORT,…"
	MTU      int    // of task interfaces, bytes; 0 means found by itself

	Listen   Listen
	Control  Control
	Limits   Limits
	Timeouts Timeouts
	NAT      NAT
	Log      Log
	Exclude  Exclude

	InnerPools []netip.Prefix
	Machines   []Machine

	Subnets        []Subnet
	SecurityGroups []api.SecurityGroup
	PrefixLists    []api.PrefixList // Version is set by Build
	Connectors     []Connector
	Services       []Service

	roles []string // as the file says; empty: see Roles
}

// The roles a machine can have.
const (
	RoleControl = "control"
	RoleEgress  = "egress"
	RoleHost    = "host"
	RoleClient  = "client" // a stock WireGuard client: only in machines
)

// Listen is where the machine can be reached. An address that is zero, or a
// path that is "", means that the door stays shut.
type Listen struct {
	WireGuard netip.AddrPort // UDP; default 0.0.0.0:51820
	API       string         // path of the unix socket; default RunDir/api.sock
	Metrics   netip.AddrPort
	APITLS    netip.AddrPort
	AppRunner netip.AddrPort
}

// Control is the control machine to join. The zero value means none.
type Control struct {
	Address   string // https://HOST:PORT
	TokenFile string // absolute path
}

// Limits bound what tasks may use.
type Limits struct {
	MaxFlows        int // of one flow table; default 262,144
	MaxFlowsPerTask int // default 0: MaxFlows
	MaxHalfOpen     int // of one task; default 4,096
	NewFlowsPerTask int // a second; default 20,000
	MaxTasks        int // of one host on one endpoint address; default 1,000
}

// Timeouts are how long a flow may be idle.
type Timeouts struct {
	TCPEstablished time.Duration // default 7,440 s
	TCPHalfOpen    time.Duration // default 240 s
	TCPHalfClosed  time.Duration // default 240 s
	UDP            time.Duration // answered; default 300 s
	UDPOneWay      time.Duration // not answered; default 120 s
	UDPDNS         time.Duration // port 53 after the answer; default 10 s
	ICMP           time.Duration // echo; default 60 s
}

// NAT says how flows are put behind an endpoint's address.
type NAT struct {
	ReservedPorts []PortRange // never used outside
	UDPMapping    string      // "" or "independent", as in api.Endpoint
	Deny          string      // "" or "drop", as in api.Endpoint
}

// PortRange is a range of ports, both included.
type PortRange struct{ From, To uint16 }

// Ports lists every port of the ranges once, lowest first.
func (n NAT) Ports() []uint16 {
	var out []uint16
	for _, r := range n.ReservedPorts {
		for p := int(r.From); p <= int(r.To); p++ {
			out = append(out, uint16(p))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Log says what is written about flows.
type Log struct {
	FlowLog  string // path; "" means no flow log
	Format   string // "aws2" (default) or "json"
	Interval time.Duration
}

// Exclude is what tasks keep reaching by their primary interface.
type Exclude struct {
	Presets []string // of "ec2", "gce", "kubernetes"
	CIDRs   []netip.Prefix
}

// Machine is another machine, or this one, when there is no control to tell.
type Machine struct {
	api.Machine
	Service string // of a client: the service it is
}

// Subnet is a private network. Its MaxAddresses addresses come from Ranges.
type Subnet struct {
	api.Subnet
	Ranges      []ipam.Range
	PerEndpoint int    // addresses of each family for an endpoint, 1 to 8
	TUN         string // name of the TUN device; "" means any
	Egress      string // machine that owns the endpoints here
	Standby     string // machine that takes over; "" means none
	// What the file said, for messages.
	hasAddresses, hasInterface, cidrsWrong bool
}

// Connector names the subnets and groups that services leave by.
type Connector struct {
	Account        string
	Name           string
	Subnets        []string
	SecurityGroups []string
}

// Service is a user of a connector.
type Service struct {
	Account   string
	Name      string
	Egress    string // "VPC" or "DEFAULT"
	Connector string // "" with DEFAULT
}

// Roles are what this machine does: what the file says, or else what follows
// from it. A machine that joins a control is an egress if it has subnets and
// a host if not; one that is in machines has the role it has there; any other
// does everything itself.
func (f *File) Roles() []string {
	if len(f.roles) > 0 {
		return slices.Clone(f.roles)
	}
	if f.Control.Address != "" {
		if len(f.Subnets) > 0 {
			return []string{RoleEgress}
		}
		return []string{RoleHost}
	}
	for _, m := range f.Machines {
		if m.Name == f.Machine {
			return []string{m.Role}
		}
	}
	return []string{RoleControl, RoleEgress, RoleHost}
}

// HasRole says whether this machine has the role.
func (f *File) HasRole(role string) bool { return slices.Contains(f.Roles(), role) }
