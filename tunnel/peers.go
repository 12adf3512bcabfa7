package tunnel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// SetPeers implements Transport. Peers that stay keep their sessions; a prefix
// that moves from one peer to another is dead for the moment between. Before
// Run the peers are kept and applied at its start.
//
// A change of Addr counts at once; a peer whose Addr stays the same keeps the
// address it was last heard from. If the error comes from the device itself,
// part of the change may be in effect: SetPeers again.
func (s *Stock) SetPeers(peers []Peer) error {
	want, err := s.check(peers)
	if err != nil {
		return err
	}
	s.control.Lock()
	defer s.control.Unlock()

	old := s.table.Load()
	var (
		states  = make([]*peerState, len(want))
		renamed = make([]Peer, len(want)) // what each state wanted before
		uapi    strings.Builder
	)
	next := make(map[Key]*peerState, len(want))
	undo := func() {
		for i, p := range states {
			if p != nil {
				p.want = renamed[i]
			}
		}
	}
	for i, w := range want {
		p := s.peers[w.PublicKey]
		if p == nil {
			s.nextSlot++
			p = &peerState{key: w.PublicKey, slot: s.nextSlot}
		}
		states[i], renamed[i] = p, p.want
		p.want = w
		next[w.PublicKey] = p
	}
	full, err := newTable(states, nil)
	if err != nil {
		undo()
		return err
	}
	// While the device changes, a prefix that changes hands belongs to nobody:
	// no packet is ever said to come from the wrong peer.
	moving, err := newTable(states, func(p *peerState, pre netip.Prefix) bool { return !old.foreign(p, pre) })
	if err != nil {
		undo()
		return err
	}
	// Removals first.
	for _, p := range old.peers {
		if next[p.key] == nil {
			fmt.Fprintf(&uapi, "public_key=%s\nremove=true\n", p.key.hex())
		}
	}
	for i, p := range states {
		if s.peers[p.key] != nil {
			writeLostPrefixes(&uapi, &renamed[i], &p.want)
		}
	}
	for i, p := range states {
		if s.peers[p.key] == nil {
			writeNewPeer(&uapi, &p.want)
		} else {
			writeChanges(&uapi, &renamed[i], &p.want)
		}
	}
	for _, p := range states {
		p.id.Store(p.want.ID)
	}
	s.table.Store(moving)
	if s.dev != nil && uapi.Len() > 0 {
		err = s.dev.IpcSet(uapi.String())
	}
	for _, p := range old.peers {
		if next[p.key] == nil {
			s.tx.gate.forget(p)
		}
	}
	s.peers = next
	s.table.Store(full)
	if err != nil {
		return fmt.Errorf("tunnel: set peers: %w", err)
	}
	return nil
}

// check returns a normalised copy of peers.
func (s *Stock) check(peers []Peer) ([]Peer, error) {
	if len(peers) > device.MaxPeers {
		return nil, fmt.Errorf("tunnel: %d peers, at most %d are possible", len(peers), device.MaxPeers)
	}
	var (
		own  = s.cfg.PrivateKey.Public()
		keys = make(map[Key]int, len(peers))
		ids  = make(map[uint32]int, len(peers))
		out  = make([]Peer, len(peers))
	)
	for i := range peers {
		p := peers[i]
		name := p.Name
		if name == "" {
			name = fmt.Sprintf("number %d", i)
		}
		switch {
		case p.PublicKey.IsZero():
			return nil, fmt.Errorf("tunnel: peer %s: no public key", name)
		case p.PublicKey == own:
			return nil, fmt.Errorf("tunnel: peer %s: its public key is our own", name)
		case p.ID == 0:
			return nil, fmt.Errorf("tunnel: peer %s: ID is 0", name)
		case p.Keepalive < 0 || p.Keepalive > 65535*time.Second:
			return nil, fmt.Errorf("tunnel: peer %s: keepalive %v is not within 0 and 65535s", name, p.Keepalive)
		case p.Keepalive%time.Second != 0:
			return nil, fmt.Errorf("tunnel: peer %s: keepalive %v is not in whole seconds", name, p.Keepalive)
		case p.Addr.IsValid() && (p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified() || p.Addr.Addr().IsMulticast()):
			return nil, fmt.Errorf("tunnel: peer %s: nobody listens on %s", name, p.Addr)
		}
		if j, dup := keys[p.PublicKey]; dup {
			return nil, fmt.Errorf("tunnel: peer %s: same public key as number %d", name, j)
		}
		if j, dup := ids[p.ID]; dup {
			return nil, fmt.Errorf("tunnel: peer %s: same ID %d as number %d", name, p.ID, j)
		}
		keys[p.PublicKey], ids[p.ID] = i, i
		if p.Addr.IsValid() {
			p.Addr = netip.AddrPortFrom(p.Addr.Addr().Unmap(), p.Addr.Port())
			if s.cfg.Family == IPv4Family && !p.Addr.Addr().Is4() || s.cfg.Family == IPv6Family && p.Addr.Addr().Is4() {
				return nil, fmt.Errorf("tunnel: peer %s: the socket does not speak the address family of %s", name, p.Addr)
			}
		}
		p.AllowedIPs = make([]netip.Prefix, 0, len(peers[i].AllowedIPs))
		for _, pre := range peers[i].AllowedIPs {
			if !pre.IsValid() || pre.Addr().Zone() != "" {
				return nil, fmt.Errorf("tunnel: peer %s: %v is no prefix", name, pre)
			}
			if pre.Addr().Is4In6() {
				if pre.Bits() < 96 {
					return nil, fmt.Errorf("tunnel: peer %s: %v mixes IPv4 and IPv6", name, pre)
				}
				pre = netip.PrefixFrom(pre.Addr().Unmap(), pre.Bits()-96)
			}
			p.AllowedIPs = append(p.AllowedIPs, pre.Masked())
		}
		slices.SortFunc(p.AllowedIPs, comparePrefix)
		p.AllowedIPs = slices.Compact(p.AllowedIPs)
		out[i] = p
	}
	return out, nil
}

// comparePrefix orders prefixes: check sorts every peer's.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func hasPrefix(sorted []netip.Prefix, pre netip.Prefix) bool {
	_, found := slices.BinarySearchFunc(sorted, pre, comparePrefix)
	return found
}

// The UAPI text (wireguard.com/xplatform) of a change. replace_peers and
// replace_allowed_ips are not used: they stop traffic of what does not change.

func writeNewPeer(b *strings.Builder, p *Peer) {
	fmt.Fprintf(b, "public_key=%s\n", p.PublicKey.hex())
	if !p.PresharedKey.IsZero() {
		fmt.Fprintf(b, "preshared_key=%s\n", p.PresharedKey.hex())
	}
	if p.Addr.IsValid() {
		fmt.Fprintf(b, "endpoint=%s\n", p.Addr)
	}
	for _, pre := range p.AllowedIPs {
		fmt.Fprintf(b, "allowed_ip=%s\n", pre)
	}
	// Last: a keepalive may go out as soon as it is set.
	if p.Keepalive != 0 {
		fmt.Fprintf(b, "persistent_keepalive_interval=%d\n", p.Keepalive/time.Second)
	}
}

func writeLostPrefixes(b *strings.Builder, was, now *Peer) {
	named := false
	for _, pre := range was.AllowedIPs {
		if hasPrefix(now.AllowedIPs, pre) {
			continue
		}
		if !named {
			fmt.Fprintf(b, "public_key=%s\nupdate_only=true\n", now.PublicKey.hex())
			named = true
		}
		fmt.Fprintf(b, "allowed_ip=-%s\n", pre)
	}
}

func writeChanges(b *strings.Builder, was, now *Peer) {
	var c strings.Builder
	if now.PresharedKey != was.PresharedKey {
		fmt.Fprintf(&c, "preshared_key=%s\n", now.PresharedKey.hex())
	}
	if now.Addr.IsValid() && now.Addr != was.Addr {
		fmt.Fprintf(&c, "endpoint=%s\n", now.Addr)
	}
	for _, pre := range now.AllowedIPs {
		if !hasPrefix(was.AllowedIPs, pre) {
			fmt.Fprintf(&c, "allowed_ip=%s\n", pre)
		}
	}
	if now.Keepalive != was.Keepalive {
		fmt.Fprintf(&c, "persistent_keepalive_interval=%d\n", now.Keepalive/time.Second)
	}
	if c.Len() > 0 {
		fmt.Fprintf(b, "public_key=%s\nupdate_only=true\n%s", now.PublicKey.hex(), c.String())
	}
}
