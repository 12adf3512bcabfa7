package tunnel

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// counters count wire packets. All fields are atomic.
type counters struct {
	sealed, opened atomic.Uint64
	dropped        [packet.NumReasons]atomic.Uint64
}

func (c *counters) drop(r Reason, n int) {
	if n > 0 {
		c.dropped[r].Add(uint64(n))
	}
}

// wirePackets returns how many packets pk is on the wire.
func wirePackets(pk *packet.Packet) int {
	return pk.GSO.Segments(len(pk.Data) - int(pk.GSO.HdrLen))
}

func dropAll(c *counters, r Reason, b *packet.Batch) {
	n := 0
	for i := range b.Packets {
		if pk := &b.Packets[i]; len(pk.Data) > 0 {
			n += wirePackets(pk)
		}
	}
	c.drop(r, n)
}

// refresh empties b and makes sure that it has memory: a batch that a caller
// made without NewBatch must not stay in a ring.
func refresh(b *packet.Batch) {
	b.Reset()
	if b.Full(packet.MaxPacket) {
		*b = *packet.NewBatch()
	}
}

// txRing takes batches from Seal to the device. A batch changes hands by
// swapping memory; its packets are copied once, by the Segmenter, into the
// buffers of the device.
type txRing struct {
	free, full chan *packet.Batch // together they hold every batch of the ring
	closed     <-chan struct{}
	patience   time.Duration
	timers     sync.Pool // of *time.Timer, for Seals that wait
	count      *counters
	gate       *txGate
	clock      clock.Clock
	tag        tagger
	table      *atomic.Pointer[table]

	// Owned by the goroutine that calls read.
	cur     *packet.Batch
	index   int // of the packet in cur that is next, or is being cut
	seg     packet.Segmenter
	left    int        // wire packets of the packet being cut that are still to come; 0: none is
	to      *peerState // where it goes
	touched []*peerState
}

func newTxRing(batches int, r *txRing) *txRing {
	r.free = make(chan *packet.Batch, batches)
	r.full = make(chan *packet.Batch, batches)
	for range batches {
		r.free <- packet.NewBatch()
	}
	r.touched = make([]*peerState, 0, deviceBatch)
	return r
}

// seal is Transport.Seal.
func (r *txRing) seal(b *packet.Batch) {
	any := false
	for i := range b.Packets {
		any = any || len(b.Packets[i].Data) > 0
	}
	if !any {
		b.Reset()
		return
	}
	select {
	case <-r.closed:
		dropAll(r.count, packet.ShuttingDown, b)
		b.Reset()
		return
	default:
	}
	var slot *packet.Batch
	select {
	case slot = <-r.free:
	default:
		slot = r.waitFree()
	}
	if slot == nil {
		dropAll(r.count, packet.QueueFull, b)
		b.Reset()
		return
	}
	b.Swap(slot)
	r.full <- slot // never blocks: there are no more batches than room
}

// waitFree waits for room. The ring is full only when the device as a whole
// cannot keep up: it never waits for one peer.
func (r *txRing) waitFree() *packet.Batch {
	if r.patience < 0 {
		return nil
	}
	t, _ := r.timers.Get().(*time.Timer)
	if t == nil {
		t = time.NewTimer(r.patience)
	} else {
		t.Reset(r.patience)
	}
	defer func() {
		t.Stop()
		r.timers.Put(t)
	}()
	select {
	case slot := <-r.free:
		return slot
	case <-r.closed:
		return nil
	case <-t.C:
	}
	select { // the whole process may have slept past the end
	case slot := <-r.free:
		return slot
	default:
		return nil
	}
}

// read is tun.Device.Read: it fills bufs with wire packets, draining as many
// batches as fit, and blocks until there is at least one. The device calls it
// from one goroutine.
func (r *txRing) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if !r.gate.wait(r.closed, func() []*peerState { return r.table.Load().peers }) {
		return 0, os.ErrClosed
	}
	n := 0
	for n < len(bufs) {
		if r.cur == nil {
			select {
			case r.cur = <-r.full:
			default:
				if n > 0 {
					break
				}
				select {
				case r.cur = <-r.full:
				case <-r.closed:
					return 0, os.ErrClosed
				}
			}
			if r.cur == nil {
				break
			}
			r.index, r.left = 0, 0
		}
		n = r.fill(bufs, sizes, offset, n)
	}
	for i, p := range r.touched {
		r.gate.commit(p)
		r.touched[i] = nil
	}
	r.touched = r.touched[:0]
	r.count.sealed.Add(uint64(n))
	return n, nil
}

// fill cuts packets of the current batch into bufs from the nth on.
func (r *txRing) fill(bufs [][]byte, sizes []int, offset, n int) int {
	t := r.table.Load()
	for ; r.index < len(r.cur.Packets); r.index++ {
		if r.left == 0 && !r.start(t) {
			continue
		}
		for r.left > 0 {
			if n == len(bufs) {
				return n
			}
			// Only a peer without a session is ever refused; the rest of a
			// super-packet is of no use then.
			if !r.gate.admit(r.to, r.clock) {
				r.to.unsent.Add(uint64(r.left))
				r.count.drop(packet.TunnelDown, r.left)
				r.left = 0
				break
			}
			buf := bufs[n]
			if offset+r.seg.MaxLen()+transportTrailer > len(buf) {
				r.count.drop(packet.TooBig, r.left)
				r.left = 0
				break
			}
			size, more := r.seg.Next(buf[offset : len(buf)-transportTrailer])
			if size == 0 {
				r.left = 0
				break
			}
			if r.to.pending == 0 {
				r.touched = append(r.touched, r.to)
			}
			r.to.next++
			r.to.pending++
			putTag(r.tag.at(buf, offset+size+transportTrailer), tagTx, r.to.slot, r.to.next)
			sizes[n] = size
			n++
			if r.left--; !more {
				r.left = 0
			}
		}
	}
	refresh(r.cur)
	r.free <- r.cur // never blocks
	r.cur = nil
	return n
}

// start routes the packet at index and begins to cut it.
func (r *txRing) start(t *table) bool {
	pk := &r.cur.Packets[r.index]
	if len(pk.Data) == 0 {
		return false
	}
	n := wirePackets(pk)
	p := t.destination(pk.Data)
	if p == nil || pk.Peer != 0 && pk.Peer != p.id.Load() {
		r.count.drop(packet.NoRoute, n)
		return false
	}
	if reason := r.seg.Start(pk); reason != packet.OK {
		r.count.drop(reason, n)
		return false
	}
	r.left, r.to = n, p
	return true
}
