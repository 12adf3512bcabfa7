package config

import (
	"net/netip"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/fe919326/spillway/internal/ipam"
)

// DefaultInnerPools are where inner prefixes come from unless the file says
// otherwise: a part of the shared address space (RFC 6598) and a unique local
// prefix (RFC 4193), the same on every machine so that two machines which
// read the same file agree.
func DefaultInnerPools() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("100.112.0.0/12"), netip.MustParsePrefix("fd53:7069:6c6c::/48")}
}

// Most entries of the lists in a file.
const (
	maxList    = 10_000 // machines, subnets, groups, connectors, services
	maxRules   = 1_000
	maxEntries = 10_000 // of a prefix list
	maxRefs    = 100    // names, ranges or CIDRs in one place
)

// file reads the top of the document.
func (d *decoder) file(root *yaml.Node) *File {
	f := &File{
		Path: d.path, Account: "default", StateDir: "/var/lib/spillway", RunDir: "/run/spillway", Store: "embedded",
		Listen: Listen{WireGuard: netip.AddrPortFrom(netip.IPv4Unspecified(), 51820)},
		Limits: Limits{MaxFlows: 262_144, MaxHalfOpen: 4096, NewFlowsPerTask: 20_000, MaxTasks: 1000},
		Timeouts: Timeouts{
			TCPEstablished: 7440 * time.Second, TCPHalfOpen: 240 * time.Second, TCPHalfClosed: 240 * time.Second,
			UDP: 300 * time.Second, UDPOneWay: 120 * time.Second, UDPDNS: 10 * time.Second, ICMP: 60 * time.Second,
		},
		Log:        Log{Format: "aws2", Interval: time.Minute},
		InnerPools: DefaultInnerPools(),
	}
	// The two defaults that other parts need, wherever they stand.
	for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
		switch k, v := root.Content[i].Value, root.Content[i+1].Value; {
		case k == "account" && nameForm.MatchString(v):
			f.Account = v
		case k == "zone" && nameForm.MatchString(v):
			f.Zone = v
		}
	}
	d.account = f.Account
	d.object(node{root, ""},
		field{"machine", true, func(n node) { f.Machine = d.name(n) }},
		field{"roles", false, func(n node) { f.roles = d.roles(n) }},
		field{"zone", false, func(n node) { d.name(n) }},
		field{"account", false, func(n node) { d.name(n) }},
		field{"state_dir", false, func(n node) { f.StateDir = d.filePath(n) }},
		field{"run_dir", false, func(n node) { f.RunDir = d.filePath(n) }},
		field{"store", false, func(n node) { f.Store = d.store(n) }},
		field{"listen", false, func(n node) { d.listen(n, &f.Listen) }},
		field{"control", false, func(n node) { d.control(n, &f.Control) }},
		field{"machines", false, func(n node) {
			d.list(n, maxList, func(n node) { f.Machines = append(f.Machines, d.machine(n)) })
		}},
		field{"subnets", false, func(n node) {
			d.list(n, maxList, func(n node) { f.Subnets = append(f.Subnets, d.subnet(n, f.Zone)) })
		}},
		field{"security_groups", false, func(n node) {
			d.list(n, maxList, func(n node) { f.SecurityGroups = append(f.SecurityGroups, d.group(n)) })
		}},
		field{"prefix_lists", false, func(n node) {
			d.list(n, maxList, func(n node) { f.PrefixLists = append(f.PrefixLists, d.prefixList(n)) })
		}},
		field{"connectors", false, func(n node) {
			d.list(n, maxList, func(n node) { f.Connectors = append(f.Connectors, d.connector(n)) })
		}},
		field{"services", false, func(n node) {
			d.list(n, maxList, func(n node) { f.Services = append(f.Services, d.service(n)) })
		}},
		field{"inner_pool", false, func(n node) { f.InnerPools = d.innerPools(n) }},
		field{"mtu", false, func(n node) { f.MTU = d.number(n, 1280, 65535-80) }},
		field{"exclude", false, func(n node) { d.exclude(n, &f.Exclude) }},
		field{"limits", false, func(n node) { d.limits(n, &f.Limits) }},
		field{"timeouts", false, func(n node) { d.timeouts(n, &f.Timeouts) }},
		field{"nat", false, func(n node) { d.nat(n, &f.NAT) }},
		field{"log", false, func(n node) { d.log(n, &f.Log) }},
	)
	if f.Listen.API == "" {
		f.Listen.API = f.RunDir + "/api.sock"
	}
	return f
}

func (d *decoder) roles(n node) (roles []string) {
	seen := map[string]bool{}
	d.list(n, 3, func(n node) {
		r := d.choice(n, RoleControl, RoleEgress, RoleHost)
		if r != "" && seen[r] {
			d.wrong(n, "role %q is given twice", r)
			return
		}
		seen[r] = true
		roles = append(roles, r)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.wrong(n, "must name a role, or be left out")
	}
	return roles
}

func (d *decoder) store(n node) string {
	s, ok := d.text(n)
	if !ok || s == "embedded" {
		return s
	}
	hosts, found := strings.CutPrefix(s, "etcd://")
	if !found || hosts == "" {
		d.wrong(n, "%s is neither embedded nor etcd://HOST:PORT,HOST:PORT", quote(s))
		return ""
	}
	for h := range strings.SplitSeq(hosts, ",") {
		if !hostPort(h) {
			d.wrong(n, "%s is not HOST:PORT", quote(h))
		}
	}
	return s
}

func (d *decoder) listen(n node, l *Listen) {
	d.object(n,
		field{"wireguard", false, func(n node) { l.WireGuard = d.addrPort(n) }},
		field{"api", false, func(n node) { l.API = d.socketPath(n) }},
		field{"metrics", false, func(n node) { l.Metrics = d.addrPort(n) }},
		field{"api_tls", false, func(n node) { l.APITLS = d.addrPort(n) }},
		field{"apprunner", false, func(n node) { l.AppRunner = d.addrPort(n) }},
	)
}

// socketPath reads unix:///path, short enough for sun_path (108 bytes).
func (d *decoder) socketPath(n node) string {
	s, ok := d.text(n)
	if !ok {
		return ""
	}
	p, found := strings.CutPrefix(s, "unix://")
	if !found || !strings.HasPrefix(p, "/") {
		d.wrong(n, "%s is not a unix socket, as in unix:///run/spillway/api.sock", quote(s))
		return ""
	}
	if len(p) > 107 {
		d.wrong(n, "the path has %d bytes; the most is 107", len(p))
		return ""
	}
	copied := *n.Node
	copied.Value = p
	return d.filePath(node{&copied, n.key})
}

func (d *decoder) control(n node, c *Control) {
	d.object(n,
		field{"address", true, func(n node) {
			s, ok := d.text(n)
			if host, found := strings.CutPrefix(s, "https://"); ok && (!found || !hostPort(host)) {
				d.wrong(n, "%s is not https://HOST:PORT", quote(s))
				return
			}
			c.Address = s
		}},
		field{"token_file", true, func(n node) { c.TokenFile = d.filePath(n) }},
	)
}

func (d *decoder) innerPools(n node) (pools []netip.Prefix) {
	before := len(d.errs)
	d.list(n, 16, func(n node) {
		p := d.prefix(n, false)
		if !p.IsValid() {
			return
		}
		if err := ipam.CheckPools(append(pools, p)); err != nil {
			d.wrong(n, "%v", err)
			return
		}
		if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || p.Bits() < 8 {
			d.wrong(n, "%s cannot be used inside the tunnel", p)
			return
		}
		pools = append(pools, p)
	})
	if len(pools) == 0 && len(d.errs) == before {
		d.wrong(n, "must hold at least one prefix, or be left out")
	}
	return pools
}

func (d *decoder) exclude(n node, e *Exclude) {
	d.object(n,
		field{"presets", false, func(n node) {
			d.list(n, 3, func(n node) { e.Presets = append(e.Presets, d.choice(n, "ec2", "gce", "kubernetes")) })
		}},
		field{"cidrs", false, func(n node) {
			d.list(n, maxRefs, func(n node) {
				p := d.prefix(n, false)
				if p.IsValid() && p.Bits() == 0 {
					d.wrong(n, "%s would let everything leave by the primary interface", p)
					return
				}
				e.CIDRs = append(e.CIDRs, p)
			})
		}},
	)
}

func (d *decoder) limits(n node, l *Limits) {
	d.object(n,
		field{"max_flows", false, func(n node) { l.MaxFlows = d.number(n, 1024, 1<<24) }},
		field{"max_flows_per_task", false, func(n node) { l.MaxFlowsPerTask = d.number(n, 1, 1<<24) }},
		field{"max_half_open_per_task", false, func(n node) { l.MaxHalfOpen = d.number(n, 1, 1<<20) }},
		field{"new_flows_per_task", false, func(n node) { l.NewFlowsPerTask = d.number(n, 1, 10_000_000) }},
		field{"max_tasks", false, func(n node) { l.MaxTasks = d.number(n, 1, 1<<16) }},
	)
	if l.MaxFlowsPerTask > l.MaxFlows {
		d.wrong(n, "max_flows_per_task (%d) is larger than max_flows (%d)", l.MaxFlowsPerTask, l.MaxFlows)
	}
}

func (d *decoder) timeouts(n node, t *Timeouts) {
	seconds := func(key string, to *time.Duration, low, high int) field {
		return field{key, false, func(n node) {
			*to = d.duration(n, time.Duration(low)*time.Second, time.Duration(high)*time.Second)
		}}
	}
	d.object(n,
		seconds("tcp_established", &t.TCPEstablished, 60, 432_000),
		seconds("tcp_half_open", &t.TCPHalfOpen, 1, 432_000),
		seconds("tcp_half_closed", &t.TCPHalfClosed, 1, 432_000),
		seconds("udp", &t.UDP, 120, 432_000),
		seconds("udp_one_way", &t.UDPOneWay, 120, 432_000),
		seconds("udp_dns", &t.UDPDNS, 1, 432_000),
		seconds("icmp", &t.ICMP, 60, 432_000),
	)
}

func (d *decoder) nat(n node, t *NAT) {
	d.object(n,
		field{"reserved_ports", false, func(n node) {
			d.list(n, maxRefs, func(n node) { t.ReservedPorts = append(t.ReservedPorts, d.portRange(n)) })
		}},
		field{"udp_mapping", false, func(n node) {
			if t.UDPMapping = d.choice(n, "shared", "independent"); t.UDPMapping == "shared" {
				t.UDPMapping = ""
			}
		}},
		field{"deny", false, func(n node) {
			if t.Deny = d.choice(n, "answer", "drop"); t.Deny == "answer" {
				t.Deny = ""
			}
		}},
	)
}

func (d *decoder) log(n node, l *Log) {
	d.object(n,
		field{"flow_log", false, func(n node) { l.FlowLog = d.filePath(n) }},
		field{"format", false, func(n node) { l.Format = d.choice(n, "aws2", "json") }},
		field{"interval", false, func(n node) { l.Interval = d.duration(n, time.Second, 10*time.Minute) }},
	)
}
