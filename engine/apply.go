package engine

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/internal/packet"
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

// plan is a snapshot on its way to become what an egress does: everything
// that can fail happens while it is made.
type plan struct {
	engine   *Engine
	snapshot *api.Snapshot
	view     *egressView
	slots    map[slotKey]*slot
	made     []*slot                 // slots that are new, to be closed if the plan is dropped
	revived  []*slot                 // slots that had retired, to retire again then
	peers    map[string]*tunnel.Peer // by machine
	order    []string                // of peers
}

// applyEgressLocked makes, changes and ends endpoints and peers.
func (e *Engine) applyEgressLocked(s *api.Snapshot) (err error) {
	sets, err := compilePolicies(s)
	if err != nil {
		return err
	}
	p := &plan{
		engine: e, snapshot: s, view: &egressView{outside: make(map[packet.Addr]*slot)},
		slots: make(map[slotKey]*slot), peers: make(map[string]*tunnel.Peer),
	}
	defer func() {
		if err != nil {
			for _, sl := range p.made {
				err = errors.Join(err, sl.close())
			}
			for _, sl := range p.revived {
				e.retired = append(e.retired, retiredSlot{sl, e.clock.Mono()})
			}
		}
	}()
	for _, pool := range s.InnerPools {
		p.view.pools = append(p.view.pools, rangeOf(pool))
	}
	if err := p.addPeers(); err != nil {
		return err
	}
	for i := range s.Endpoints {
		if err := p.addEndpointLocked(&s.Endpoints[i]); err != nil {
			return err
		}
	}
	if err := p.checkDelegations(); err != nil {
		return err
	}
	run, err := e.tunnelLocked("")
	if err != nil {
		return err
	}
	if err := run.tunnel.SetPeers(p.peerList()); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	p.view.tunnel = run.tunnel

	// Nothing can fail from here on.
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		for n := range ep.Addresses {
			if sl := p.slots[slotKey{ep.ID, n}]; sl != nil {
				sl.endpoint.Store(ep)
				sl.policy.Store(sets[ep.ID])
				e.logEndpointLocked(s, sl, ep, ep.Addresses[n])
			}
		}
	}
	old := e.slots
	e.slots = p.slots
	e.egress.Store(p.view)
	e.retireLocked(old)
	return nil
}

// addPeers takes every machine that is no egress as a peer.
func (p *plan) addPeers() error {
	for i, m := range p.snapshot.Machines {
		if m.Role == string(RoleEgress) {
			continue
		}
		peer, err := peerOf(m, uint32(i+1))
		if err != nil {
			return err
		}
		p.peers[m.Name] = &peer
		p.order = append(p.order, m.Name)
	}
	return nil
}

func (p *plan) peerList() []tunnel.Peer {
	list := make([]tunnel.Peer, 0, len(p.order))
	for _, name := range p.order {
		list = append(list, *p.peers[name])
	}
	return list
}

// addEndpointLocked takes the addresses of an endpoint that this machine owns
// on a subnet that it serves.
func (p *plan) addEndpointLocked(ep *api.Endpoint) error {
	port, served := p.engine.ports[ep.Account+"/"+ep.Subnet]
	for n, addr := range ep.Addresses {
		if addr.Owner != p.engine.cfg.Machine || !served {
			continue
		}
		sl, err := p.slotLocked(slotKey{ep.ID, n}, ep, addr, port)
		if err != nil {
			return err
		}
		for _, a := range []packet.Addr{sl.v4, sl.v6} {
			if a != (packet.Addr{}) {
				p.view.outside[a] = sl
			}
		}
		if err := p.delegate(sl, addr.Prefixes); err != nil {
			return err
		}
	}
	return nil
}

// slotLocked is the slot that serves addr: the one there is, one that was
// retired a moment ago, or a new one.
func (p *plan) slotLocked(key slotKey, ep *api.Endpoint, addr api.EndpointAddress, port uint32) (*slot, error) {
	sl := p.engine.slots[key]
	if sl == nil || !sl.serves(addr, port) {
		if sl = p.engine.reviveLocked(key, addr, port); sl != nil {
			p.revived = append(p.revived, sl)
		}
	}
	if sl == nil {
		var err error
		if sl, err = p.engine.newSlot(key, ep, addr, port); err != nil {
			return nil, err
		}
		p.made = append(p.made, sl)
	}
	p.slots[key] = sl
	return sl, nil
}

// delegate lends prefixes of a slot to peers.
func (p *plan) delegate(sl *slot, prefixes []api.Delegation) error {
	bases := taskBases(prefixes)
	for i, d := range prefixes {
		peer := p.peers[d.Machine]
		if peer == nil {
			return fmt.Errorf("endpoint %s lends %v to %q, which is no known machine", sl.key.endpoint, d.Prefix, d.Machine)
		}
		peer.AllowedIPs = append(peer.AllowedIPs, d.Prefix)
		r := rangeOf(d.Prefix)
		gateway := next(r.first)
		if r.first == r.last { // a stock client: its only address is its own
			gateway = p.view.gatewayFor(p.snapshot.InnerPools, d.Prefix)
		}
		p.view.delegations = append(p.view.delegations, delegation{
			addrRange: r, gateway: gateway, base: bases[i], peer: peer.ID, machine: d.Machine, slot: sl,
		})
	}
	return nil
}

// checkDelegations sorts the prefixes and refuses those that overlap.
func (p *plan) checkDelegations() error {
	ds := p.view.delegations
	sortDelegations(ds)
	for i := 1; i < len(ds); i++ {
		if ds[i].contains(ds[i-1].last) {
			return fmt.Errorf("inner prefixes of %q and %q overlap", ds[i-1].machine, ds[i].machine)
		}
	}
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
