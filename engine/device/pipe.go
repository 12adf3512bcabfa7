package device

import (
	"os"
	"sync"

	"github.com/fe919326/spillway/internal/packet"
)

// pipeDepth is the number of batches that wait in one direction of a pipe
// before it drops: 2 MiB.
const pipeDepth = 8

// PipeEnd is one end of a pair of links in memory. What one end writes the
// other reads, in order, with port and offload state as they were: a pipe is a
// wire that takes super-packets. It implements Link.
type PipeEnd struct {
	in, out *pipeHalf // immutable after NewPipe
}

// pipeHalf is one direction: a bounded queue of batches.
type pipeHalf struct {
	mu     sync.Mutex
	filled sync.Cond         // L is mu; signalled when waiting gets its first batch, or closed
	queue  [pipeDepth]*Batch // guarded by mu: a ring
	head   int               // guarded by mu: index of the oldest batch
	n      int               // guarded by mu: batches in queue
	spare  []*Batch          // guarded by mu: empty batches, at most pipeDepth
	closed bool              // guarded by mu: no more writes; reads drain what is left
	cut    bool              // guarded by mu: the reading end is closed
	stats  PipeStats         // guarded by mu
}

// PipeStats counts what went into one end of a pipe.
type PipeStats struct {
	// Packets and Bytes are what the other end has read or can read.
	Packets, Bytes uint64
	// Dropped is the number of packets for which there was no room
	// (packet.QueueFull), or that were written after a Close.
	Dropped uint64
}

// NewPipe returns the two ends of a new pipe.
func NewPipe() (*PipeEnd, *PipeEnd) {
	ab, ba := newPipeHalf(), newPipeHalf()
	return &PipeEnd{in: ba, out: ab}, &PipeEnd{in: ab, out: ba}
}

func newPipeHalf() *pipeHalf {
	h := &pipeHalf{spare: make([]*Batch, 0, pipeDepth)}
	h.filled.L = &h.mu
	return h
}

// Read implements Link. Packets that were written before either end was closed
// can still be read at the other; then it returns os.ErrClosed.
func (e *PipeEnd) Read(b *Batch) error {
	b.Reset()
	h := e.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.n == 0 && !h.closed && !h.cut {
		h.filled.Wait()
	}
	if h.n == 0 || h.cut {
		return os.ErrClosed
	}
	// The packets change hands with the memory they are in.
	q := h.queue[h.head]
	h.queue[h.head] = nil
	h.head, h.n = (h.head+1)%pipeDepth, h.n-1
	b.Swap(q)
	h.spare = append(h.spare, q)
	return nil
}

// Write implements Link.
func (e *PipeEnd) Write(b *Batch) {
	h := e.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range b.Packets {
		pk := &b.Packets[i]
		if len(pk.Data) == 0 {
			continue
		}
		if h.closed || h.cut || !h.pushLocked(pk) {
			h.stats.Dropped++
			continue
		}
		h.stats.Packets++
		h.stats.Bytes += uint64(len(pk.Data))
	}
	if h.n > 0 {
		h.filled.Signal()
	}
}

// pushLocked copies pk to the end of the queue; it returns false if that is
// full.
func (h *pipeHalf) pushLocked(pk *packet.Packet) bool {
	if h.n > 0 {
		if c := h.queue[(h.head+h.n-1)%pipeDepth].Append(pk.Data); c != nil {
			c.GSO, c.Port = pk.GSO, pk.Port
			return true
		}
	}
	if h.n == pipeDepth {
		return false
	}
	var q *Batch
	if k := len(h.spare); k > 0 {
		q, h.spare = h.spare[k-1], h.spare[:k-1]
		q.Reset()
	} else {
		q = packet.NewBatch()
	}
	c := q.Append(pk.Data)
	if c == nil { // larger than any packet
		h.spare = append(h.spare, q)
		return false
	}
	c.GSO, c.Port = pk.GSO, pk.Port
	h.queue[(h.head+h.n)%pipeDepth] = q
	h.n++
	return true
}

// Close implements Link. The other end reads what is on its way, then gets
// os.ErrClosed; what it writes is dropped.
func (e *PipeEnd) Close() error {
	e.out.mu.Lock()
	e.out.closed = true
	e.out.mu.Unlock()
	e.out.filled.Broadcast()
	e.in.mu.Lock()
	e.in.cut = true
	e.in.mu.Unlock()
	e.in.filled.Broadcast()
	return nil
}

// Stats counts what was written to e.
func (e *PipeEnd) Stats() PipeStats {
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	return e.out.stats
}

var _ Link = (*PipeEnd)(nil)
