package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// TaskTable is the routing table of a task's tunnel.
const TaskTable = 5350

// DefaultMark is the packet mark of the engine's own sockets, for the case
// that they are in the task's namespace.
const DefaultMark = 0x5350

// The priorities of a task's policy rules, in order.
const (
	prioMark        = 5350 // marked by the engine -> main
	prioFromPrimary = 5351 // answers to what came in -> main
	prioExclude     = 5352 // declared exclusions -> main
	prioAllow       = 5353 // destinations allowed by the primary -> main
	prioUDPServer   = 5354 // declared UDP servers -> main
	prioTunnel      = 5358 // everything else -> TaskTable
	prioUnreachable = 5359
)

// metricUnreachable is the metric of the route behind the tunnel's: the
// largest that ip(8) prints without surprise.
const metricUnreachable = 4278198272

// AttachConfig says how a task is attached.
type AttachConfig struct {
	NS        *NS    // the task's namespace; required. May be the host's own
	Host      *NS    // where the primary's other end is looked for; nil means the caller's namespace
	Interface string // the tunnel's name; "" means spill0

	Addr4, Addr6 netip.Addr // inner addresses; at least one
	MTU          int        // bytes; 0 means MaxTunnelMTU

	// Mark is the packet mark of the engine's own sockets when they are in
	// the task's namespace: such packets leave by the primary. 0 means that
	// there are none, and then no mark opens the guard.
	Mark uint32

	Exclude      []Destination // reached by the primary: metadata service, resolvers of the platform
	PrimaryAllow []Destination // reached by the primary because the operator said so
	UDPServers   []uint16      // ports of UDP servers that answer by the primary, known beforehand

	// Peers are the host's ends of the primaries, for the guard outside. nil
	// means that they are found by the kernel's veth links.
	Peers []string

	// NoOutsideGuard leaves the guard outside away, for a namespace whose
	// owner has no part of the host. A task that is root in its namespace
	// can then leave in clear.
	NoOutsideGuard bool
}

func (c *AttachConfig) inner() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{c.Addr4, c.Addr6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func (c *AttachConfig) declared() []Destination {
	return append(append([]Destination{}, c.Exclude...), c.PrimaryAllow...)
}

func (c *AttachConfig) check() error {
	switch {
	case c.NS == nil:
		return errors.New("attach: no namespace given")
	case !c.Addr4.IsValid() && !c.Addr6.IsValid():
		return errors.New("attach: no inner address given")
	case c.Addr4.IsValid() && !c.Addr4.Is4():
		return fmt.Errorf("attach: %s is not an IPv4 address", c.Addr4)
	case c.Addr6.IsValid() && (!c.Addr6.Is6() || c.Addr6.Is4In6() || c.Addr6.Zone() != ""):
		return fmt.Errorf("attach: %s is not an IPv6 address", c.Addr6)
	case len(c.Interface) >= unix.IFNAMSIZ:
		return fmt.Errorf("attach: interface name %q is longer than 15 bytes", c.Interface)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535):
		return fmt.Errorf("attach: MTU %d is not in 576-65535", c.MTU)
	case c.MTU != 0 && c.MTU < MinTunnelMTU && c.Addr6.IsValid():
		return fmt.Errorf("attach: MTU %d is too small for IPv6, which needs %d", c.MTU, MinTunnelMTU)
	}
	for _, d := range c.declared() {
		if !d.Prefix.IsValid() || d.Prefix.Addr().Is4In6() {
			return fmt.Errorf("attach: destination %v is not valid", d.Prefix)
		}
	}
	if c.Interface == "" {
		c.Interface = "spill0"
	}
	if c.MTU == 0 {
		c.MTU = MaxTunnelMTU
	}
	return nil
}

// Step is one part of an attach and how long it took.
type Step struct {
	Name string
	Took time.Duration
}

// Attachment is a task's namespace that Prepare put into the fail-closed
// state. Its methods are not safe for concurrent use.
type Attachment struct {
	cfg   AttachConfig
	task  *Conn
	host  *Conn // nil without a guard outside
	hns   *NS   // opened by us; nil when the caller gave one
	peers []string
	steps []Step
	rules []rule
	// Primaries are the task's other interfaces as Prepare found them.
	Primaries []Primary
}

// Prepare puts a task's namespace into the fail-closed state: routing rules
// and the unreachable routes, then the guards inside and outside. Afterwards
// nothing that the task starts leaves, and what comes in by the primary is
// answered by the primary. It does not need the tunnel's interface and must
// come before it. Doing it again, also by another process, changes nothing but
// what differs; addresses that the primary got since are taken in.
//
// On error everything stays as far as it got, which is never more open than
// before; Detach removes it.
func Prepare(cfg AttachConfig) (a *Attachment, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	a = &Attachment{cfg: cfg}
	defer func() {
		if err != nil {
			a.Close()
			a = nil
		}
	}()
	return a, a.run([]task{
		{"open", a.open},
		{"discover", a.discover},
		{"routes", a.failClosed},
		{"rules", a.addRules},
		{"guards", a.guards},
	})
}

// Configure gives the tunnel's interface, which must exist in the namespace
// by now (a TUN opened within NS.Do), its addresses, MTU and routes, and brings
// it up.
func (a *Attachment) Configure() error {
	return a.run([]task{{"sysctls", a.tunnelSysctls}, {"interface", a.tunnelLink}, {"default route", a.tunnelRoutes}})
}

// task is a named step.
type task struct {
	name string
	run  func() error
}

func (a *Attachment) run(ts []task) error {
	for _, t := range ts {
		start := time.Now()
		err := t.run()
		a.steps = append(a.steps, Step{t.name, time.Since(start)})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
	}
	return nil
}

// Steps are the parts done so far with their times.
func (a *Attachment) Steps() []Step { return append([]Step(nil), a.steps...) }

// Close lets go of the kernel sockets. Nothing is removed: the task stays as
// it is.
func (a *Attachment) Close() error {
	var errs []error
	for _, c := range []*Conn{a.task, a.host} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	a.task, a.host = nil, nil
	if a.hns != nil {
		errs = append(errs, a.hns.Close())
		a.hns = nil
	}
	return errors.Join(errs...)
}

func (a *Attachment) open() error {
	var err error
	if a.task, err = a.cfg.NS.Open(); err != nil {
		return err
	}
	if a.cfg.NoOutsideGuard {
		return nil
	}
	if a.cfg.Host == nil {
		if a.hns, err = CurrentNS(); err != nil {
			return err
		}
		a.cfg.Host = a.hns
	}
	a.host, err = a.cfg.Host.Open()
	return err
}

func (a *Attachment) discover() error {
	var err error
	if a.Primaries, err = a.task.Primaries(a.cfg.Interface); err != nil {
		return err
	}
	if a.host == nil {
		return nil
	}
	if a.cfg.Peers != nil {
		a.peers = a.cfg.Peers
		return nil
	}
	for _, p := range a.Primaries {
		l, err := PeerOf(a.task, a.host, p)
		if errors.Is(err, ErrNoPeer) {
			continue // Outside reports how many were guarded
		}
		if err != nil {
			return err
		}
		a.peers = append(a.peers, l.Name)
	}
	return nil
}

// Outside names the host's interfaces that carry the guard outside. Fewer than
// Primaries means that some primary has no other end on this host.
func (a *Attachment) Outside() []string { return append([]string(nil), a.peers...) }

func (a *Attachment) onLink() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a.Primaries {
		out = append(out, p.Addrs...)
	}
	return out
}

// failClosed puts the unreachable routes into TaskTable.
func (a *Attachment) failClosed() error {
	for _, f := range families {
		err := a.task.SetRoute(Route{
			Dst: defaultRoute(f), Table: TaskTable, Metric: metricUnreachable, Unreachable: true, Own: true,
		})
		if err != nil && !noFamily(err) {
			return err
		}
	}
	return nil
}

// addRules makes the policy rules, last one first: at no moment does a rule
// that opens stand without the ones that close behind it.
func (a *Attachment) addRules() error {
	a.rules = taskRules(&a.cfg, a.Primaries)
	sort.SliceStable(a.rules, func(i, j int) bool { return a.rules[i].priority > a.rules[j].priority })
	for _, r := range a.rules {
		if err := a.task.addRule(r); err != nil && !(r.family == unix.AF_INET6 && noFamily(err)) {
			return err
		}
	}
	_, err := a.task.delOwnRules(prioMark, prioUnreachable, a.rules)
	return err
}

// taskRules are the rules of a task, in both families.
func taskRules(cfg *AttachConfig, primaries []Primary) []rule {
	var out []rule
	for _, f := range families {
		add := func(r rule) {
			r.family = f
			if r.table == 0 && !r.unreachable {
				r.table = MainTable
			}
			out = append(out, r)
		}
		if cfg.Mark != 0 {
			add(rule{priority: prioMark, mark: cfg.Mark})
		}
		for _, p := range primaries {
			for _, at := range p.Addrs {
				if family(at.Addr()) == f {
					add(rule{priority: prioFromPrimary, from: netip.PrefixFrom(at.Addr(), at.Addr().BitLen())})
				}
			}
		}
		for _, d := range cfg.Exclude {
			addDestination(add, f, prioExclude, d)
		}
		for _, d := range cfg.PrimaryAllow {
			addDestination(add, f, prioAllow, d)
		}
		for _, p := range cfg.UDPServers {
			add(rule{priority: prioUDPServer, proto: unix.IPPROTO_UDP, sport: p})
		}
		add(rule{priority: prioTunnel, table: TaskTable})
		add(rule{priority: prioUnreachable, unreachable: true})
	}
	return out
}

func addDestination(add func(rule), f, prio int, d Destination) {
	if family(d.Prefix.Addr()) != f {
		return
	}
	if d.Port == 0 {
		add(rule{priority: prio, to: d.Prefix})
		return
	}
	for _, proto := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		add(rule{priority: prio, to: d.Prefix, proto: proto, dport: d.Port})
	}
}

// guards builds the guards inside and outside at the same time: they are in
// different namespaces, and each is a transaction of its own.
func (a *Attachment) guards() error {
	onLink := a.onLink()
	outside := make(chan error, 1)
	go func() {
		if a.host != nil {
			for _, p := range a.peers {
				if err := applyOutside(a.host, p, &a.cfg, onLink); err != nil {
					outside <- err
					return
				}
			}
		}
		outside <- nil
	}()
	err := applyInside(a.task, &a.cfg, onLink)
	return errors.Join(err, <-outside)
}
