package tunnel

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

// rxRing takes packets from the device to Open. Write copies them out of the
// device's buffers, which go back at once; Open takes a whole batch by swapping
// memory.
type rxRing struct {
	closed   <-chan struct{}
	patience time.Duration
	count    *counters
	gate     *rxGate
	tag      tagger
	table    *atomic.Pointer[table]
	timers   sync.Pool // of *time.Timer, for Writes that wait

	ready chan struct{} // capacity 1: there is a packet
	room  chan struct{} // capacity 1: a batch became free

	mu sync.Mutex // a leaf: nothing is called under it but packet.Batch
	// Guarded by mu. Batches from head to tail hold packets; Write appends to
	// the one at tail.
	batches    []*packet.Batch
	head, tail int
}

func newRxRing(batches int, r *rxRing) *rxRing {
	r.ready = make(chan struct{}, 1)
	r.room = make(chan struct{}, 1)
	r.batches = make([]*packet.Batch, batches)
	for i := range r.batches {
		r.batches[i] = packet.NewBatch()
	}
	return r
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// open is Transport.Open.
func (r *rxRing) open(b *packet.Batch) error {
	for {
		if r.take(b) {
			return nil
		}
		select {
		case <-r.ready:
			continue
		default:
		}
		select {
		case <-r.ready:
		case <-r.closed:
			if r.take(b) { // what arrived before the end
				return nil
			}
			return os.ErrClosed
		}
	}
}

func (r *rxRing) take(b *packet.Batch) bool {
	r.mu.Lock()
	slot := r.batches[r.head]
	if len(slot.Packets) == 0 {
		r.mu.Unlock()
		return false
	}
	refresh(b)
	b.Swap(slot)
	if r.head != r.tail {
		r.head = (r.head + 1) % len(r.batches)
	}
	more := len(r.batches[r.head].Packets) > 0
	r.mu.Unlock()
	if more {
		poke(r.ready) // another worker may take the next
	}
	poke(r.room)
	r.count.opened.Add(uint64(len(b.Packets)))
	return true
}

// write is tun.Device.Write: bufs are packets of one peer, decrypted and with
// their source address checked by the device. It returns in bounded time. The
// device calls it from one goroutine per peer.
func (r *rxRing) write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	t := r.table.Load()
	r.append(t, bufs, offset)
	// Tell the gate after the copy: now the device's buffers are free again.
	// Session indexes change inside a call at most once, at a rekey.
	first, seq, ok := r.tagOf(bufs[0])
	last, lastSeq, lastOK := r.tagOf(bufs[len(bufs)-1])
	if lastOK {
		r.gate.delivered(last, lastSeq, len(bufs))
	}
	if ok && (!lastOK || first != last) {
		r.gate.delivered(first, seq, len(bufs))
	}
	return len(bufs), nil
}

func (r *rxRing) tagOf(buf []byte) (index uint32, seq uint64, ok bool) {
	// buf is header and plaintext: the trailer was cut off.
	return getTag(r.tag.at(buf, len(buf)+transportTrailer), tagRx)
}

// append copies bufs into the ring, in order, waiting for room if it must.
func (r *rxRing) append(t *table, bufs [][]byte, offset int) {
	// All packets of one call are from one peer. While prefixes move between
	// peers the table may name another one: the session decides.
	var owner *peerState
	var deadline *time.Timer // one for the whole call
	done := 0
	for done < len(bufs) {
		r.mu.Lock()
		for ; done < len(bufs); done++ {
			data := bufs[done][offset:]
			p := t.source(data)
			if p != nil && owner == nil {
				if index, _, ok := r.tagOf(bufs[done]); ok {
					owner = r.gate.owner(index, p)
				} else {
					owner = p
				}
				if !owner.moving.Load() {
					owner.moving.Store(true) // what it sends came through a session
				}
			}
			if p == nil || p != owner {
				r.count.drop(packet.SpoofedSource, 1)
				continue
			}
			if !r.appendLocked(data, p.id.Load()) {
				break
			}
		}
		r.mu.Unlock()
		poke(r.ready)
		if done == len(bufs) {
			break
		}
		if deadline == nil {
			deadline = r.startTimer()
		}
		if deadline == nil || !r.waitRoom(deadline) {
			r.count.drop(packet.QueueFull, len(bufs)-done)
			break
		}
	}
	if deadline != nil {
		deadline.Stop()
		r.timers.Put(deadline)
	}
}

// appendLocked adds one packet, moving on to the next batch if need be. It
// returns false if there is none.
func (r *rxRing) appendLocked(data []byte, peer uint32) bool {
	slot := r.batches[r.tail]
	pk := slot.Append(data)
	if pk == nil {
		next := (r.tail + 1) % len(r.batches)
		if next == r.head {
			return false
		}
		r.tail = next
		if pk = r.batches[next].Append(data); pk == nil {
			return false
		}
	}
	pk.Peer = peer
	return true
}

// startTimer returns a timer that fires when patience ends, nil if there is
// none to begin with.
func (r *rxRing) startTimer() *time.Timer {
	if r.patience < 0 {
		return nil
	}
	t, _ := r.timers.Get().(*time.Timer)
	if t == nil {
		return time.NewTimer(r.patience)
	}
	t.Reset(r.patience)
	return t
}

// waitRoom waits until Open took a batch, or deadline.
func (r *rxRing) waitRoom(deadline *time.Timer) bool {
	r.gate.block(1)
	defer r.gate.block(-1)
	select {
	case <-r.room:
		return true
	case <-deadline.C:
	case <-r.closed:
	}
	return false
}
