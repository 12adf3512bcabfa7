package tunnel

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fe919326/spillway/internal/packet"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Stock is a Transport that runs wireguard-go's device behind bounded rings.
//
// Lock order: control, then any lock of the device, then the leaves (the
// gates', the peers' and the ring's). What the device calls, Read, Write, Send
// and receive, never takes control.
type Stock struct {
	// Immutable after NewStock.
	cfg   Config
	bind  *bind
	tun   *vtun
	tx    *txRing
	rx    *rxRing
	count counters
	table atomic.Pointer[table]

	closed    chan struct{} // the rings take and give no more
	closeOnce sync.Once
	ready     chan struct{} // closed when the device is up
	started   atomic.Bool

	control sync.Mutex
	// Guarded by control.
	dev      *device.Device // nil before Run and after it
	peers    map[Key]*peerState
	nextSlot uint32
}

// NewStock checks cfg and returns a tunnel without peers. It opens nothing:
// Run does.
func NewStock(cfg Config) (*Stock, error) {
	return newStock(cfg, conn.NewDefaultBind())
}

// newStock is NewStock over any bind.
func newStock(cfg Config, inner conn.Bind) (*Stock, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Stock{
		cfg:    cfg,
		closed: make(chan struct{}),
		ready:  make(chan struct{}),
		peers:  make(map[Key]*peerState),
	}
	s.table.Store(&table{})
	l := &s.cfg.Limits
	tag := newTagger(cfg.MTU)
	txg, rxg := newTxGate(l), newRxGate(l.RxPackets, cfg.Clock)
	s.tx = newTxRing(l.TxBatches, &txRing{
		closed: s.closed, patience: l.SealWait, count: &s.count, gate: txg, clock: cfg.Clock, tag: tag, table: &s.table,
	})
	s.rx = newRxRing(l.RxBatches, &rxRing{
		closed: s.closed, patience: l.OpenWait, count: &s.count, gate: rxg, tag: tag, table: &s.table,
	})
	s.bind = newBind(inner, runtime.GOMAXPROCS(0)+1, &bind{
		family: cfg.Family, tag: tag, tx: txg, rx: rxg, table: &s.table, count: &s.count,
	})
	s.tun = &vtun{mtu: cfg.MTU, tx: s.tx, rx: s.rx, events: make(chan tun.Event), close: s.shut}
	return s, nil
}

func (s *Stock) shut() { s.closeOnce.Do(func() { close(s.closed) }) }

// Seal implements Transport. Before Run it fills the ring and then drops.
func (s *Stock) Seal(b *packet.Batch) { s.tx.seal(b) }

// Open implements Transport.
func (s *Stock) Open(b *packet.Batch) error { return s.rx.open(b) }

// Ready implements Transport.
func (s *Stock) Ready() <-chan struct{} { return s.ready }

// ListenPort implements Transport.
func (s *Stock) ListenPort() int {
	port, _ := s.bind.state()
	return port
}

// PublicKey returns the key that peers know this tunnel by.
func (s *Stock) PublicKey() Key { return s.cfg.PrivateKey.Public() }

// MTU returns the largest inner packet, in bytes.
func (s *Stock) MTU() int { return s.cfg.MTU }

// Run implements Transport: it makes the device, opens the socket, applies the
// peers, closes Ready, and waits for ctx. It returns nil after an orderly end,
// otherwise what went wrong, for example that the port is in use.
func (s *Stock) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer s.shut()
	dev, err := s.up()
	if dev != nil {
		defer s.down(dev)
	}
	if err != nil {
		return err
	}
	close(s.ready)
	select {
	case <-ctx.Done():
		return nil
	case <-dev.Wait():
		return errors.New("wireguard device closed by itself")
	}
}

func (s *Stock) up() (*device.Device, error) {
	s.control.Lock()
	defer s.control.Unlock()
	dev := device.NewDevice(s.tun, s.bind, deviceLogger(s.cfg.Logger, s.cfg.Clock))
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\n", s.cfg.PrivateKey.hex(), s.cfg.ListenPort)
	if s.cfg.Mark != 0 {
		fmt.Fprintf(&b, "fwmark=%d\n", s.cfg.Mark)
	}
	for _, p := range s.table.Load().peers {
		writeNewPeer(&b, &p.want)
	}
	if err := dev.IpcSet(b.String()); err != nil {
		return dev, fmt.Errorf("tunnel: %w", err)
	}
	if err := dev.Up(); err != nil {
		if _, openErr := s.bind.state(); openErr != nil {
			return dev, fmt.Errorf("tunnel: %w", openErr)
		}
		if s.cfg.Mark != 0 {
			return dev, fmt.Errorf("tunnel: socket with mark %#x: %w", s.cfg.Mark, err)
		}
		return dev, fmt.Errorf("tunnel: %w", err)
	}
	s.dev = dev
	return dev, nil
}

func (s *Stock) down(dev *device.Device) {
	// First the rings, so that no goroutine of the device waits in them.
	s.shut()
	s.control.Lock()
	s.dev = nil
	s.control.Unlock()
	dev.Close()
	<-dev.Wait()
}

// Stats implements Transport.
func (s *Stock) Stats() Stats {
	st := Stats{
		SealedPackets: s.count.sealed.Load(),
		OpenedPackets: s.count.opened.Load(),
		TxInFlight:    int(s.tx.gate.onWay.Load()),
		TxWaiting:     int(s.tx.gate.waiting.Load()),
		RxInFlight:    s.rx.gate.inFlight(),
	}
	for r := range st.Dropped {
		st.Dropped[r] = s.count.dropped[r].Load()
	}
	return st
}
