package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// DefaultMTU is the inner MTU that fits an underlay of 1500 bytes with IPv6
// outside: 1500 - 40 - 8 - 32.
const DefaultMTU = 1420

// Family says which IP versions the UDP socket speaks.
type Family uint8

// The families.
const (
	AnyFamily  Family = iota // both
	IPv4Family               // UDP over IPv4 only
	IPv6Family               // UDP over IPv6 only
)

// Config is what a Stock needs to know. NewStock checks it.
type Config struct {
	// PrivateKey is the machine's key. Required.
	PrivateKey PrivateKey
	// ListenPort is the UDP port. 0 means any.
	ListenPort int
	// Family restricts the UDP socket. The other family's socket stays open
	// and deaf: whatever it receives is thrown away unread. Default: both.
	Family Family
	// Mark is the firewall mark (SO_MARK) of outgoing datagrams; it needs
	// CAP_NET_ADMIN on Linux. 0 means none.
	Mark uint32
	// MTU is the largest inner packet, in bytes, 576 to 65,000. Default
	// DefaultMTU. Peers should agree on it.
	MTU int
	// Limits bound memory and waiting. The zero Limits are good.
	Limits Limits
	// Logger nil means no log.
	Logger *slog.Logger
	// Clock nil means clock.System.
	Clock clock.Clock
}

// Limits bound what the tunnel holds. Zero fields mean the default.
type Limits struct {
	// TxBatches and RxBatches are the lengths of the rings between the engine
	// and the device, in batches of packet.ArenaSize bytes. Default 8, 2 to 256.
	TxBatches, RxBatches int
	// TxPackets and RxPackets bound the packets inside the device per
	// direction. Default 384 and 384, 128 to 65,536. The device works in
	// batches of 128; one batch per direction comes on top.
	TxPackets, RxPackets int
	// WaitingPerPeer bounds the packets that wait for the session of one peer.
	// Default 64, 1 to 128.
	WaitingPerPeer int
	// Waiting bounds the packets that wait for sessions of all peers together;
	// each peer's first packet comes on top. Default 1,024, at least 1.
	Waiting int
	// SealWait is how long Seal may wait for room in the ring before it drops.
	// Default 20 ms, at most 1 s; below 0 means not at all.
	SealWait time.Duration
	// OpenWait is how long an arriving packet may wait for room in the ring
	// before it is dropped. Default 5 ms, at most 1 s; below 0 means not at all.
	OpenWait time.Duration
}

func (l *Limits) setDefaults() error {
	if err := within("TxBatches", &l.TxBatches, 8, 2, 256); err != nil {
		return err
	}
	if err := within("RxBatches", &l.RxBatches, 8, 2, 256); err != nil {
		return err
	}
	if err := within("TxPackets", &l.TxPackets, 384, 128, 65536); err != nil {
		return err
	}
	if err := within("RxPackets", &l.RxPackets, 384, 128, 65536); err != nil {
		return err
	}
	if err := within("WaitingPerPeer", &l.WaitingPerPeer, 64, 1, 128); err != nil {
		return err
	}
	if err := within("Waiting", &l.Waiting, 1024, 1, 1<<20); err != nil {
		return err
	}
	if err := within("SealWait", &l.SealWait, 20*time.Millisecond, -1<<62, time.Second); err != nil {
		return err
	}
	return within("OpenWait", &l.OpenWait, 5*time.Millisecond, -1<<62, time.Second)
}

func within[T int | time.Duration](name string, v *T, def, lo, hi T) error {
	if *v == 0 {
		*v = def
	}
	if *v < lo || *v > hi {
		return fmt.Errorf("tunnel limit %s: %v is not within %v and %v", name, *v, lo, hi)
	}
	return nil
}

func (c *Config) setDefaults() error {
	if c.PrivateKey.IsZero() {
		return errors.New("tunnel: no private key")
	}
	c.PrivateKey.clamp()
	if c.ListenPort < 0 || c.ListenPort > 65535 {
		return fmt.Errorf("tunnel: listen port %d is not within 0 and 65535", c.ListenPort)
	}
	if c.Family > IPv6Family {
		return fmt.Errorf("tunnel: unknown address family %d", c.Family)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < 576 || c.MTU > 65000 {
		return fmt.Errorf("tunnel: MTU %d is not within 576 and 65000", c.MTU)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	return c.Limits.setDefaults()
}
