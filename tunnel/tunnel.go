// Package tunnel carries packets between machines over WireGuard.
//
// A Transport takes batches of IP packets, super-packets included, and gives
// batches back. Stock is the one that runs wireguard-go's device: one private
// key, one UDP port, many peers.
//
// What wireguard-go does by itself is unbounded: every packet on its way sits
// in a buffer of 64 KB, and each peer may queue more than a hundred thousand
// of them. Stock counts the packets between its own two ends of the device
// (the virtual TUN and the UDP socket) and lets no more than a few hundred in
// per direction; a peer without a session gets a few dozen. What does not fit
// waits for a bounded time and is then dropped and counted under a Reason.
//
// Identity: the device accepts a packet only from the peer whose AllowedIPs
// hold its source address. Open says which peer that was.
package tunnel

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

// Reason says why a packet was dropped.
type Reason = packet.Reason

// Transport is the seam between the engine and whatever encrypts. All methods
// are safe for concurrent use.
type Transport interface {
	// Seal takes every packet of b that was not dropped, super-packets and
	// packets with a partial checksum included, and sends it to the peer whose
	// AllowedIPs hold its destination. A Packet.Peer that is not zero must
	// agree, or the packet is dropped. Afterwards b is empty and may have other
	// memory. Seal waits for a bounded time while the transport as a whole is
	// saturated, so that the caller's own queue fills up and not ours; it never
	// waits for one peer. Drops are counted in Stats.
	Seal(b *packet.Batch)
	// Open replaces b's packets with at least one packet that arrived,
	// Packet.Peer set to the peer it came from; it blocks until there is one.
	// b may have other memory afterwards. After Run has ended it returns
	// os.ErrClosed.
	Open(b *packet.Batch) error
	// SetPeers makes peers the whole set of peers by applying the difference:
	// peers that stay keep their session. An error means that nothing was
	// changed, unless it says otherwise.
	SetPeers(peers []Peer) error
	// Peers reports on every peer, in the order of SetPeers.
	Peers() []PeerStatus
	// Initiate starts a handshake with a peer now, unless one was started
	// within the last 5 s.
	Initiate(peer uint32) error
	// Stats returns counters since the start.
	Stats() Stats
	// Run works until ctx ends, then joins every goroutine. It runs once.
	Run(ctx context.Context) error
	// Ready is closed when packets can flow.
	Ready() <-chan struct{}
	// ListenPort is the UDP port in use; 0 before Ready.
	ListenPort() int
}

var _ Transport = (*Stock)(nil)

// Peer is the other end of a tunnel.
type Peer struct {
	// Name is for people. Default: none.
	Name string
	// ID is what Packet.Peer holds. Required, not 0, unique.
	ID uint32
	// PublicKey is required and unique.
	PublicKey Key
	// PresharedKey zero means none. A change counts from the next handshake on.
	PresharedKey PresharedKey
	// Addr is where the peer listens. Zero means that the peer calls us; once
	// it did, its last authenticated address counts.
	Addr netip.AddrPort
	// AllowedIPs are the addresses the peer may send from and is sent to. Two
	// peers' prefixes must not overlap.
	AllowedIPs []netip.Prefix
	// Keepalive is the interval of persistent keepalives, in whole seconds up
	// to 65,535. Default: none.
	Keepalive time.Duration
}

// PeerStatus is a peer as it is now.
type PeerStatus struct {
	Name      string
	ID        uint32
	PublicKey Key
	// Addr is the peer's current UDP address; zero if it is not known.
	Addr netip.AddrPort
	// LastHandshake is zero if there was none yet.
	LastHandshake time.Time
	// RxBytes and TxBytes count UDP payload, handshakes included.
	RxBytes, TxBytes uint64
	// Queued is the number of packets handed to the device for this peer and
	// not yet sent.
	Queued int
	// Unsent counts packets dropped because the peer had no session and its
	// share of waiting packets was full.
	Unsent uint64
}

// Stats are counters since NewStock.
type Stats struct {
	// SealedPackets and OpenedPackets count wire packets that passed.
	SealedPackets, OpenedPackets uint64
	// TxInFlight, TxWaiting and RxInFlight are packets inside the device now:
	// on their way out, waiting for a session, on their way in.
	TxInFlight, TxWaiting, RxInFlight int
	// Dropped counts wire packets by Reason.
	Dropped [packet.NumReasons]uint64
}

// Errors that callers branch on.
var (
	// ErrOverlap means that two peers' AllowedIPs overlap.
	ErrOverlap = errors.New("AllowedIPs of two peers overlap")
	// ErrUnknownPeer means that no peer has that ID.
	ErrUnknownPeer = errors.New("unknown peer")
	// ErrRunning means that Run was called before.
	ErrRunning = errors.New("tunnel runs once only")
	// ErrNotRunning means that the tunnel is not up, or not any more.
	ErrNotRunning = errors.New("tunnel is not running")
)
