package config

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/ipam"
)

// machines lists the peers: this machine once for each role that has a
// tunnel, and those that the file names.
func (b *builder) machines() {
	f := b.f
	self := func(role string) api.Machine {
		return api.Machine{Name: f.Machine, Role: role, Zone: f.Zone, PublicKeys: slices.Clone(b.in.Keys[role])}
	}
	listed := false
	for _, m := range append(slices.Clone(f.Machines), b.in.Clients...) {
		x := m.Machine
		if x.Name == f.Machine {
			listed = true
			own := self(x.Role)
			x.Zone = cmp.Or(x.Zone, own.Zone)
			if len(own.PublicKeys) > 0 {
				x.PublicKeys = own.PublicKeys
			}
		}
		b.snap.Machines = append(b.snap.Machines, x)
	}
	for _, role := range []string{RoleEgress, RoleHost} {
		if !f.HasRole(role) || listed && b.has(f.Machine, role) {
			continue
		}
		m := self(role)
		if role == RoleEgress {
			m.Address = f.Listen.reachable()
		}
		b.snap.Machines = append(b.snap.Machines, m)
	}
	slices.SortFunc(b.snap.Machines, func(x, y api.Machine) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Role, y.Role))
	})
}

func (b *builder) has(name, role string) bool {
	return slices.ContainsFunc(b.snap.Machines, func(m api.Machine) bool { return m.Name == name && m.Role == role })
}

// reachable is where this machine itself reaches its WireGuard socket.
func (l Listen) reachable() netip.AddrPort {
	a := l.WireGuard.Addr()
	switch {
	case a.IsUnspecified() && a.Is4():
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case a.IsUnspecified():
		a = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(a, l.WireGuard.Port())
}

// delegations lends every host a prefix on every endpoint address.
func (b *builder) delegations() error {
	for i := range b.snap.Endpoints {
		e := &b.snap.Endpoints[i]
		for k := range e.Addresses {
			for _, m := range b.snap.Machines {
				if m.Role != RoleHost {
					continue
				}
				spec := b.spec(e, k)
				spec.Machine, spec.Count = m.Name, b.f.Limits.tasksBlocks()
				blocks, err := b.tx.Blocks(spec)
				if err != nil {
					return err
				}
				for _, x := range blocks {
					b.lend(&e.Addresses[k], x, api.Delegation{Machine: m.Name})
				}
			}
		}
	}
	return nil
}

func (b *builder) spec(e *api.Endpoint, index int) ipam.BlockSpec {
	a := &e.Addresses[index]
	spec := ipam.BlockSpec{Endpoint: e.ID, Index: index, Pools: b.f.InnerPools, V4: a.V4.IsValid(), V6: a.V6.IsValid()}
	if !spec.V4 && !spec.V6 { // socket driver without addresses of its own
		spec.V4, spec.V6 = b.subnet(e.Account, e.Subnet).families()
	}
	return spec
}

func (b *builder) lend(a *api.EndpointAddress, x ipam.Block, d api.Delegation) {
	for _, p := range x.Prefixes() {
		d.Prefix = p
		a.Prefixes = append(a.Prefixes, d)
	}
}

// clients gives every stock WireGuard client single addresses on one endpoint
// address of its service: one in its own zone if there is any, and among
// those the one that its name falls on, so that clients spread evenly and
// none moves when another endpoint comes or goes.
func (b *builder) clients() error {
	all := slices.Concat(b.f.Machines, b.in.Clients)
	slices.SortFunc(all, func(x, y Machine) int { return cmp.Compare(x.Name, y.Name) })
	for _, m := range all {
		if m.Role != RoleClient {
			continue
		}
		e, index := b.choose(&m)
		if e == nil {
			b.warnings = append(b.warnings, fmt.Sprintf("client %q: service %q has no endpoint (egress is not VPC)", m.Name, m.Service))
			continue
		}
		x, err := b.tx.Client(m.Name, b.spec(e, index))
		if err != nil {
			return err
		}
		b.lend(&e.Addresses[index], x, api.Delegation{Machine: m.Name, Service: m.Service})
	}
	return nil
}

func (b *builder) choose(m *Machine) (best *api.Endpoint, index int) {
	var score [sha256.Size]byte
	bestNear := false
	for i := range b.snap.Endpoints {
		e := &b.snap.Endpoints[i]
		if e.Account != b.f.Account || !slices.Contains(e.Services, m.Service) {
			continue
		}
		near := m.Zone != "" && b.subnet(e.Account, e.Subnet).Zone == m.Zone
		for k := range e.Addresses {
			sum := sha256.Sum256(fmt.Appendf(nil, "client %s %s %d", m.Name, e.ID, k))
			better := slices.Compare(sum[:], score[:]) > 0
			if best == nil || near && !bestNear || near == bestNear && better {
				best, index, score, bestNear = e, k, sum, near
			}
		}
	}
	return best, index
}
