package tunnel

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Peers implements Transport. It asks the device, which dumps everything it
// knows: good for a status page, not for a loop.
func (s *Stock) Peers() []PeerStatus {
	s.control.Lock()
	defer s.control.Unlock()
	states := s.table.Load().peers
	out := make([]PeerStatus, len(states))
	at := make(map[Key]*PeerStatus, len(states))
	for i, p := range states {
		out[i] = PeerStatus{
			Name: p.want.Name, ID: p.want.ID, PublicKey: p.key, Addr: p.want.Addr,
			Queued: p.queued(), Unsent: p.unsent.Load(),
		}
		at[p.key] = &out[i]
	}
	if s.dev == nil {
		return out
	}
	text, err := s.dev.IpcGet()
	if err != nil {
		s.cfg.Logger.Warn("wireguard status", "err", err)
		return out
	}
	var st *PeerStatus
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if key == "public_key" {
			var k Key
			_, err := hex.Decode(k[:], []byte(value))
			if st = at[k]; err != nil {
				st = nil
			}
			continue
		}
		if st != nil {
			st.set(key, value)
		}
	}
	return out
}

func (st *PeerStatus) set(key, value string) {
	switch key {
	case "endpoint":
		if a, err := netip.ParseAddrPort(value); err == nil {
			st.Addr = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
	case "last_handshake_time_sec":
		if n, _ := strconv.ParseInt(value, 10, 64); n != 0 {
			st.LastHandshake = time.Unix(n, 0)
		}
	case "last_handshake_time_nsec":
		if n, _ := strconv.ParseInt(value, 10, 64); !st.LastHandshake.IsZero() {
			st.LastHandshake = st.LastHandshake.Add(time.Duration(n))
		}
	case "rx_bytes":
		st.RxBytes, _ = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		st.TxBytes, _ = strconv.ParseUint(value, 10, 64)
	}
}

// Initiate implements Transport. It fails if the peer's address is not known.
func (s *Stock) Initiate(peer uint32) error {
	return s.withPeer(peer, func(p *device.Peer) error { return p.SendHandshakeInitiation(false) })
}

// Renew throws the session with a peer away and starts a handshake at once,
// even if one was started just now: the peer lost its state, or its address
// moved to another machine.
func (s *Stock) Renew(peer uint32) error {
	return s.withPeer(peer, func(p *device.Peer) error {
		p.ExpireCurrentKeypairs()
		return p.SendHandshakeInitiation(false)
	})
}

func (s *Stock) withPeer(id uint32, do func(*device.Peer) error) error {
	s.control.Lock()
	defer s.control.Unlock()
	if s.dev == nil {
		return ErrNotRunning
	}
	for _, p := range s.table.Load().peers {
		if p.want.ID != id {
			continue
		}
		dp := s.dev.LookupPeer(device.NoisePublicKey(p.key))
		if dp == nil {
			return fmt.Errorf("%w: %d", ErrUnknownPeer, id)
		}
		if err := do(dp); err != nil {
			return fmt.Errorf("tunnel: handshake with %s: %w", p, err)
		}
		return nil
	}
	return fmt.Errorf("%w: %d", ErrUnknownPeer, id)
}
