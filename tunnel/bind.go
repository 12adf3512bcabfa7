package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fe919326/spillway/internal/packet"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// groMessages is how many of the 128 buffers of a receive call the standard
	// bind reads coalesced datagrams into, the last ones; it then splits them
	// into the others (conn/bind_std.go, receiveIP).
	groMessages = 2
	bigBuffer   = 65535
	// Limits of one UDP_SEGMENT message (conn/bind_std.go, coalesceMessages).
	maxSegments   = 64
	maxUDPPayload = 65535 - 20 - 8
)

// bind is wireguard-go's standard bind with three additions: it counts packets
// for the gates, it holds reception back while the gate is shut, and it lends
// buffers of its own wherever the standard bind would fill one of the device's
// 64 KB buffers to the end, so that of each of those only the first page is
// ever touched.
type bind struct {
	conn.Bind
	family  Family
	tag     tagger
	tx      *txGate
	rx      *rxGate
	table   *atomic.Pointer[table]
	count   *counters
	senders chan *sendBuffers // a few, all made at the start

	mu      sync.Mutex
	closing chan struct{} // guarded by mu; closed by Close
	port    int           // guarded by mu; actual port while open
	openErr error         // guarded by mu; of the last Open
}

// sendBuffers is what one Send needs.
type sendBuffers struct {
	bufs  [][]byte
	arena []byte
}

// sendArena holds a whole batch of packets of 1,500 bytes.
const sendArena = deviceBatch * 1536

func newBind(inner conn.Bind, senders int, b *bind) *bind {
	b.Bind = inner
	b.senders = make(chan *sendBuffers, senders)
	for range senders {
		b.senders <- &sendBuffers{bufs: make([][]byte, 0, deviceBatch), arena: make([]byte, sendArena)}
	}
	return b
}

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("listen on UDP port %d: %w", port, err)
		b.openErr = err
		return nil, 0, err
	}
	b.openErr = nil
	b.closing = make(chan struct{})
	b.port = int(actual)
	b.rx.reset()
	out := make([]conn.ReceiveFunc, len(fns))
	for i, fn := range fns {
		out[i] = b.receiver(fn, b.closing)
	}
	return out, actual, nil
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.closing != nil {
		close(b.closing)
		b.closing = nil
	}
	b.port = 0
	b.mu.Unlock()
	return b.Bind.Close()
}

func (b *bind) state() (port int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.port, b.openErr
}

// receiver wraps one receive function. The device calls it from one goroutine.
func (b *bind) receiver(fn conn.ReceiveFunc, closing <-chan struct{}) conn.ReceiveFunc {
	w := b.rx.newWaiter()
	var (
		big   [groMessages][]byte
		lent  [][]byte
		batch = b.BatchSize()
	)
	if batch == deviceBatch {
		for i := range big {
			big[i] = make([]byte, bigBuffer)
		}
		lent = make([][]byte, batch)
	}
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if !b.rx.wait(w, closing) {
			return 0, net.ErrClosed
		}
		use := bufs
		split := batch - groMessages // from here on the buffers are ours
		if lent != nil && len(bufs) == batch {
			use = lent
			copy(lent, bufs[:split])
			copy(lent[split:], big[:])
		}
		n, err := fn(use, sizes, eps)
		if err != nil {
			return n, err
		}
		if lent != nil && len(bufs) == batch {
			for i := split; i < n; i++ {
				sizes[i] = copy(bufs[i], big[i-split][:sizes[i]])
			}
		}
		if b.family != AnyFamily {
			b.deafen(sizes[:n], eps)
		}
		b.count.drop(packet.QueueFull, b.rx.received(b.tag, bufs, sizes[:n]))
		return n, nil
	}
}

// deafen drops what came in over the address family that is not wanted.
func (b *bind) deafen(sizes []int, eps []conn.Endpoint) {
	for i := range sizes {
		if sizes[i] > 0 && eps[i] != nil && !b.family.has(eps[i]) {
			sizes[i] = 0
		}
	}
}

func (f Family) has(ep conn.Endpoint) bool {
	switch f {
	case IPv4Family:
		return ep.DstIP().Unmap().Is4()
	case IPv6Family:
		return !ep.DstIP().Unmap().Is4()
	}
	return true
}

// Send implements conn.Bind. All bufs go to one peer, in order.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if b.family != AnyFamily && !b.family.has(ep) {
		if p, seq := b.newest(bufs); p != nil {
			b.tx.left(p, seq)
		}
		return fmt.Errorf("send to %s: %w", ep.DstToString(), syscall.EAFNOSUPPORT)
	}
	if len(bufs) > 0 && len(bufs[0]) >= 8 {
		switch binary.LittleEndian.Uint32(bufs[0]) {
		case messageInitiation, messageResponse:
			b.rx.learn(binary.LittleEndian.Uint32(bufs[0][4:]))
			return b.Bind.Send(bufs, ep)
		}
	}
	if p, seq := b.newest(bufs); p != nil {
		p.moving.Store(true) // before anyone can see them arrive
		// Whatever becomes of them: the device forgets them after this call.
		defer b.tx.left(p, seq)
	}
	if len(bufs) < 2 {
		return b.Bind.Send(bufs, ep)
	}
	select {
	case s := <-b.senders:
		err := b.Bind.Send(s.lend(bufs), ep)
		clear(s.bufs)
		b.senders <- s
		return err
	default:
		return b.Bind.Send(bufs, ep)
	}
}

// newest returns the peer and the number of the last packet in bufs that came
// from Read, nil if there is none. It stands for all before it.
func (b *bind) newest(bufs [][]byte) (*peerState, uint64) {
	for i := len(bufs) - 1; i >= 0; i-- {
		buf := bufs[i]
		if len(buf) <= sizeKeepalive || binary.LittleEndian.Uint32(buf) != messageTransport {
			continue
		}
		if slot, seq, ok := getTag(b.tag.at(buf, len(buf)), tagTx); ok {
			return b.table.Load().bySlot[slot], seq
		}
	}
	return nil, 0
}

// lend returns bufs with each first packet of a run replaced by a copy that
// has room behind it for the rest of its run: the standard bind appends the
// others to it to make one UDP_SEGMENT message.
func (s *sendBuffers) lend(bufs [][]byte) [][]byte {
	s.bufs = append(s.bufs[:0], bufs...)
	used := 0
	for i := 0; i < len(bufs); {
		size, total, n := len(bufs[i]), len(bufs[i]), 1
		for i+n < len(bufs) && n < maxSegments {
			m := len(bufs[i+n])
			if m > size || total+m > maxUDPPayload {
				break
			}
			total += m
			n++
			if m < size {
				break // a shorter one ends the run
			}
		}
		if n > 1 && used+total <= len(s.arena) {
			room := s.arena[used : used+size : used+total]
			copy(room, bufs[i])
			s.bufs[i] = room
			used += total
		}
		i += n
	}
	return s.bufs
}
