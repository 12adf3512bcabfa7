package engine

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/engine/policy"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/nat"
	"github.com/fe919326/spillway/tunnel"
)

// tunnelRun is a tunnel and where workers find it.
type tunnelRun struct {
	id     uint32
	tunnel Tunnel
}

// Apply makes the engine do what s says: the difference to what it does now,
// all of it or, with an error, nothing. Live flows are not disturbed.
func (e *Engine) Apply(s *api.Snapshot) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group == nil { // Run applies it
		e.snapshot = s
		return nil
	}
	if err := e.applyLocked(s); err != nil {
		return err
	}
	e.snapshot = s
	return nil
}

func (e *Engine) applyLocked(s *api.Snapshot) error {
	if e.cfg.Role == RoleHost {
		return e.applyHostLocked(s)
	}
	return e.applyEgressLocked(s)
}

// AddSubnet tells an egress which link port leads to a subnet. Endpoints of
// subnets without a port are not served.
func (e *Engine) AddSubnet(account, name string, port uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ports[account+"/"+name] = port
}

// tunnelLocked returns the tunnel to a peer machine, and makes and runs it if
// there is none.
func (e *Engine) tunnelLocked(peer string) (*tunnelRun, error) {
	if t := e.tunnels[peer]; t != nil {
		return t, nil
	}
	if e.group == nil {
		return nil, errors.New("engine: Run has not been called")
	}
	t, err := e.cfg.Tunnels(peer)
	if err != nil {
		return nil, fmt.Errorf("tunnel to %q: %w", peer, err)
	}
	run := &tunnelRun{id: uint32(len(e.tunnels)), tunnel: t}
	e.tunnels[peer] = run
	ctx := e.running
	e.group.start(func() error { return t.Run(ctx) })
	w := e.newWorker()
	if e.cfg.Role == RoleHost {
		e.group.start(func() error { return e.hostInboundLoop(w, t) })
	} else {
		e.group.start(func() error { return e.egressOutboundLoop(w, t) })
	}
	return run, nil
}

// applyHostLocked points the host's tunnels at the egresses.
func (e *Engine) applyHostLocked(s *api.Snapshot) error {
	needed := make(map[string]bool)
	for _, ep := range s.Endpoints {
		for _, a := range ep.Addresses {
			for _, d := range a.Prefixes {
				if d.Machine == e.cfg.Machine && d.Service == "" {
					needed[a.Owner] = true
				}
			}
		}
	}
	for _, m := range s.Machines {
		if m.Role != "egress" || !needed[m.Name] {
			continue
		}
		p, err := peerOf(m, 1)
		if err != nil {
			return err
		}
		p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		t, err := e.tunnelLocked(m.Name)
		if err != nil {
			return err
		}
		if err := t.tunnel.SetPeers([]tunnel.Peer{p}); err != nil {
			return fmt.Errorf("tunnel to %q: %w", m.Name, err)
		}
	}
	e.publishHostLocked()
	return nil
}

// peerOf turns a machine into a tunnel peer without prefixes.
func peerOf(m api.Machine, id uint32) (tunnel.Peer, error) {
	if len(m.PublicKeys) == 0 {
		return tunnel.Peer{}, fmt.Errorf("machine %q has no public key", m.Name)
	}
	key, err := tunnel.ParseKey(m.PublicKeys[0])
	if err != nil {
		return tunnel.Peer{}, fmt.Errorf("machine %q: %w", m.Name, err)
	}
	return tunnel.Peer{Name: m.Name, ID: id, PublicKey: key, Addr: m.Address}, nil
}

// applyEgressLocked makes, changes and ends endpoints and peers.
func (e *Engine) applyEgressLocked(s *api.Snapshot) error {
	sets, err := compilePolicies(s)
	if err != nil {
		return err
	}
	peers := make(map[string]*tunnel.Peer)
	var order []string
	for i, m := range s.Machines {
		if m.Role == "egress" {
			continue
		}
		p, err := peerOf(m, uint32(i+1))
		if err != nil {
			return err
		}
		peers[m.Name] = &p
		order = append(order, m.Name)
	}

	view := &egressView{outside: make(map[packet.Addr]*slot)}
	for _, p := range s.InnerPools {
		view.pools = append(view.pools, rangeOf(p))
	}
	slots := make(map[slotKey]*slot)
	var made []*slot
	fail := func(err error) error {
		for _, s := range made {
			err = errors.Join(err, s.table.Close())
		}
		return err
	}
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		port, served := e.ports[ep.Account+"/"+ep.Subnet]
		for n, addr := range ep.Addresses {
			if addr.Owner != e.cfg.Machine || !served {
				continue
			}
			key := slotKey{ep.ID, n}
			sl := e.slots[key]
			if sl == nil || !sl.serves(addr, port) {
				sl = e.reviveLocked(key, addr, port)
			}
			if sl == nil {
				if sl, err = e.newSlot(key, ep, addr, port); err != nil {
					return fail(err)
				}
				made = append(made, sl)
			}
			slots[key] = sl
			for _, a := range []packet.Addr{sl.v4, sl.v6} {
				if a != (packet.Addr{}) {
					view.outside[a] = sl
				}
			}
			bases := taskBases(addr.Prefixes)
			for i, d := range addr.Prefixes {
				p := peers[d.Machine]
				if p == nil {
					return fail(fmt.Errorf("endpoint %s lends %v to %q, which is no known machine", ep.ID, d.Prefix, d.Machine))
				}
				p.AllowedIPs = append(p.AllowedIPs, d.Prefix)
				r := rangeOf(d.Prefix)
				gateway := next(r.first)
				if r.first == r.last { // a stock client: its only address is its own
					gateway = view.gatewayFor(s.InnerPools, d.Prefix)
				}
				view.delegations = append(view.delegations, delegation{
					addrRange: r, gateway: gateway, base: bases[i], peer: p.ID, machine: d.Machine, slot: sl,
				})
			}
		}
	}
	sortDelegations(view.delegations)
	for i := 1; i < len(view.delegations); i++ {
		if view.delegations[i].contains(view.delegations[i-1].last) {
			return fail(fmt.Errorf("inner prefixes of %q and %q overlap",
				view.delegations[i-1].machine, view.delegations[i].machine))
		}
	}

	run, err := e.tunnelLocked("")
	if err != nil {
		return fail(err)
	}
	list := make([]tunnel.Peer, 0, len(order))
	for _, name := range order {
		list = append(list, *peers[name])
	}
	if err := run.tunnel.SetPeers(list); err != nil {
		return fail(fmt.Errorf("peers: %w", err))
	}
	view.tunnel = run.tunnel

	// Nothing can fail from here on.
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		for n := range ep.Addresses {
			if sl := slots[slotKey{ep.ID, n}]; sl != nil {
				sl.endpoint.Store(ep)
				sl.policy.Store(sets[ep.ID])
				e.logEndpointLocked(s, sl, ep, ep.Addresses[n])
			}
		}
	}
	old := e.slots
	e.slots = slots
	e.egress.Store(view)
	e.retireLocked(old)
	return nil
}

// taskBases gives every prefix the task name of its first address: of an IPv4
// prefix its own address, of an IPv6 prefix that of the IPv4 prefix that goes
// with it, the n-th with the n-th of the same machine.
func taskBases(ds []api.Delegation) []uint32 {
	v4 := make(map[string][]uint32)
	for _, d := range ds {
		if d.Prefix.Addr().Is4() {
			v4[d.Machine] = append(v4[d.Machine], low32(rangeOf(d.Prefix).first))
		}
	}
	out := make([]uint32, len(ds))
	seen := make(map[string]int)
	for i, d := range ds {
		r := rangeOf(d.Prefix)
		switch n := seen[d.Machine]; {
		case d.Prefix.Addr().Is4():
			out[i] = low32(r.first)
		case n < len(v4[d.Machine]):
			out[i] = v4[d.Machine][n]
			seen[d.Machine]++
		default: // IPv6 alone: any name that is its own and stays the same
			h := fnv.New32a()
			h.Write(r.first[:])
			out[i] = h.Sum32()
		}
	}
	return out
}

// logEndpointLocked tells the flow log about an endpoint.
func (e *Engine) logEndpointLocked(s *api.Snapshot, sl *slot, ep *api.Endpoint, a api.EndpointAddress) {
	if e.cfg.FlowLog == nil {
		return
	}
	info := flowlog.EndpointInfo{Account: ep.Account, ID: ep.ID, Subnet: ep.Subnet, V4: a.V4, V6: a.V6}
	for _, sub := range s.Subnets {
		if sub.Account == ep.Account && sub.Name == ep.Subnet {
			info.Zone = sub.Zone
		}
	}
	sl.log.Store(e.cfg.FlowLog.AddEndpoint(info))
}

// gatewayFor is the address that ICMP errors to a stock client come from: the
// first address of the pool its own comes from.
func (v *egressView) gatewayFor(pools []netip.Prefix, client netip.Prefix) packet.Addr {
	for _, p := range pools {
		if p.Contains(client.Addr()) {
			return next(rangeOf(p).first)
		}
	}
	return packet.Addr{}
}

// retiredSlot is a slot that is no longer served. Workers may hold the view
// that has it for the length of one batch, so its table stays open a while.
type retiredSlot struct {
	slot *slot
	at   clock.Mono
}

// retireAfter is far longer than any batch takes.
const retireAfter = 10 * time.Second

// retireLocked ends slots that are no longer served.
func (e *Engine) retireLocked(old map[slotKey]*slot) {
	for key, sl := range old {
		if e.slots[key] != sl {
			e.retired = append(e.retired, retiredSlot{sl, e.clock.Mono()})
			if l := sl.log.Load(); l != nil && !e.servedLocked(key.endpoint) {
				e.cfg.FlowLog.RemoveEndpoint(l)
			}
			e.log.Info("endpoint address is no longer served", "endpoint", key.endpoint, "index", key.index)
		}
	}
}

// servedLocked reports whether any address of an endpoint is served.
func (e *Engine) servedLocked(endpoint string) bool {
	for key := range e.slots {
		if key.endpoint == endpoint {
			return true
		}
	}
	return false
}

// reviveLocked takes back a slot that was retired a moment ago.
func (e *Engine) reviveLocked(key slotKey, addr api.EndpointAddress, port uint32) *slot {
	for i, r := range e.retired {
		if r.slot.key == key && r.slot.serves(addr, port) {
			e.retired = slices.Delete(e.retired, i, i+1)
			return r.slot
		}
	}
	return nil
}

// closeRetired ends tables that no worker can hold any more, and their files.
func (e *Engine) closeRetired(now clock.Mono) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = slices.DeleteFunc(e.retired, func(r retiredSlot) bool {
		if now.Sub(r.at) < retireAfter {
			return false
		}
		err := r.slot.close()
		if r.slot.path != "" {
			err = errors.Join(err, os.Remove(r.slot.path))
		}
		if err != nil {
			e.log.Warn("flow table of an endpoint that has gone", "endpoint", r.slot.key.endpoint, "err", err)
		}
		return true
	})
}

// serves reports whether s already is what addr asks for.
func (s *slot) serves(addr api.EndpointAddress, port uint32) bool {
	return s.port == port && s.v4 == addrOrZero(addr.V4) && s.v6 == addrOrZero(addr.V6)
}

func addrOrZero(a netip.Addr) packet.Addr {
	if !a.IsValid() {
		return packet.Addr{}
	}
	return packet.AddrFrom(a)
}

// newSlot makes the state of one endpoint address.
func (e *Engine) newSlot(key slotKey, ep *api.Endpoint, addr api.EndpointAddress, port uint32) (*slot, error) {
	if len(ep.Secret) != 32 {
		return nil, fmt.Errorf("endpoint %s: its secret has %d bytes, want 32", ep.ID, len(ep.Secret))
	}
	s := &slot{
		key: key, v4: addrOrZero(addr.V4), v6: addrOrZero(addr.V6),
		port: port, mtu: e.cfg.MTU, limits: newLimits(e.cfg.NewFlowsPerTask),
	}
	now := e.clock.Mono()
	s.looseUntil = now.Add(e.cfg.LoosePickup)
	cfg := e.tableConfig(fmt.Sprintf("%s-%d-%x", ep.ID, key.index, low32(s.v4)+low32(s.v6)), s)
	s.path = cfg.Path
	table, err := e.openTable(cfg, now)
	if err != nil {
		return nil, fmt.Errorf("flow table of endpoint %s: %w", ep.ID, err)
	}
	s.table = table
	nc := nat.Config{Table: table, Secret: [32]byte(ep.Secret), V4: addr.V4, V6: addr.V6}
	for _, p := range e.cfg.ReservedPorts {
		nc.Reserved = append(nc.Reserved, nat.PortRange{First: p, Last: p})
	}
	if ep.UDPMapping == "independent" {
		nc.UDP = nat.Independent
	}
	if s.mapper, err = nat.New(nc); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint %s: %w", ep.ID, err), table.Close())
	}
	return s, nil
}

// tableConfig is the flow table of an endpoint address, or of the host if s
// is nil.
func (e *Engine) tableConfig(name string, s *slot) flowtable.Config {
	cfg := flowtable.Config{
		MaxFlows:           e.cfg.MaxFlows,
		MaxFlowsPerTask:    e.cfg.MaxFlowsPerTask,
		MaxHalfOpenPerTask: e.cfg.MaxHalfOpen,
		Timeouts:           e.cfg.Timeouts,
	}
	if e.cfg.TableDir != "" {
		cfg.Path = filepath.Join(e.cfg.TableDir, strings.ReplaceAll(name, "/", "-")+".flows")
	}
	if s == nil {
		cfg.Mode = flowtable.Liberal
	} else {
		cfg.LoosePickup = s.looseUntil
		cfg.OnRemove = func(f *flowtable.Entry) {
			if s.mapper != nil { // nil while the table is being opened
				s.mapper.Released(f)
				e.logEnd(s, f)
			}
		}
	}
	return cfg
}

// openTable opens a flow table. A file of another size or layout, as after a
// change of MaxFlows or an upgrade, is put away: its flows are lost, which the
// log tells.
func (e *Engine) openTable(cfg flowtable.Config, now clock.Mono) (*flowtable.Table, error) {
	t, err := flowtable.Open(cfg, now)
	if errors.Is(err, flowtable.ErrLayout) && cfg.Path != "" {
		e.log.Warn("a flow table is begun anew, its flows are lost", "path", cfg.Path, "why", err)
		if err := os.Remove(cfg.Path); err != nil {
			return nil, err
		}
		return flowtable.Open(cfg, now)
	}
	return t, err
}

// compilePolicies compiles one policy per endpoint.
func compilePolicies(s *api.Snapshot) (map[string]*policy.Set, error) {
	groups := make(map[string]api.SecurityGroup)
	for _, g := range s.SecurityGroups {
		groups[g.Account+"/"+g.Name] = g
	}
	sets := make(map[string]*policy.Set)
	for _, ep := range s.Endpoints {
		in := policy.Input{Version: uint32(s.Stamp.Revision)}
		for _, name := range ep.SecurityGroups {
			g, ok := groups[ep.Account+"/"+name]
			if !ok {
				return nil, fmt.Errorf("endpoint %s names security group %q, which does not exist", ep.ID, name)
			}
			in.Groups = append(in.Groups, g)
		}
		for _, l := range s.PrefixLists {
			if l.Account == ep.Account {
				in.Lists = append(in.Lists, l)
			}
		}
		account := ep.Account
		in.Members = func(group string) []netip.Prefix { return membersOf(s, account, group) }
		set, err := policy.Compile(in)
		if err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", ep.ID, err)
		}
		sets[ep.ID] = set
	}
	return sets, nil
}

// membersOf is the private addresses of the endpoints in a group.
func membersOf(s *api.Snapshot, account, group string) []netip.Prefix {
	var out []netip.Prefix
	for _, ep := range s.Endpoints {
		if ep.Account != account {
			continue
		}
		for _, name := range ep.SecurityGroups {
			if name != group {
				continue
			}
			for _, a := range ep.Addresses {
				for _, ip := range []netip.Addr{a.V4, a.V6} {
					if ip.IsValid() {
						out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
					}
				}
			}
		}
	}
	return out
}

// closeTables ends what Run opened.
func (e *Engine) closeTables() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for sl := range maps.Values(e.slots) {
		errs = append(errs, sl.close())
	}
	for _, r := range e.retired {
		errs = append(errs, r.slot.close())
	}
	if e.flows != nil {
		errs = append(errs, e.flows.Close())
	}
	e.slots, e.retired, e.flows = nil, nil, nil
	e.group = nil
	e.host.Store(&hostView{})
	e.egress.Store(&egressView{})
	return errors.Join(errs...)
}
