package flowlog

import "sync/atomic"

// ring is a bounded queue of fixed-size values with any number of producers
// and one consumer (after Dmitry Vyukov's bounded queue): a producer claims a
// slot by one compare-and-swap, fills it, and publishes it by its sequence
// number. Neither side ever waits for the other.
type ring[T any] struct {
	slots []slot[T]
	mask  uint64
	_     [64]byte // producers and consumer on different cache lines
	tail  atomic.Uint64
	_     [64]byte
	head  uint64 // owned by the consumer
}

type slot[T any] struct {
	seq   atomic.Uint64 // n: free for position n; n+1: filled at position n
	value T
}

// newRing returns a ring of at least size slots.
func newRing[T any](size int) *ring[T] {
	n := 1
	for n < size {
		n *= 2
	}
	r := &ring[T]{slots: make([]slot[T], n), mask: uint64(n - 1)}
	for i := range r.slots {
		r.slots[i].seq.Store(uint64(i))
	}
	return r
}

// push copies *v into the ring, or reports false if the ring is full.
func (r *ring[T]) push(v *T) bool {
	for {
		pos := r.tail.Load()
		s := &r.slots[pos&r.mask]
		switch seq := s.seq.Load(); {
		case seq == pos:
			if r.tail.CompareAndSwap(pos, pos+1) {
				s.value = *v
				s.seq.Store(pos + 1)
				return true
			}
		case seq < pos:
			return false // a whole round behind: not yet consumed
		}
		// Another producer was faster: try the next slot.
	}
}

// pop copies the oldest value to *v, or reports false if there is none.
func (r *ring[T]) pop(v *T) bool {
	s := &r.slots[r.head&r.mask]
	if s.seq.Load() != r.head+1 {
		return false
	}
	*v = s.value
	var zero T
	s.value = zero // no pointers kept alive
	s.seq.Store(r.head + uint64(len(r.slots)))
	r.head++
	return true
}

// empty reports whether pop would find nothing. For the consumer only.
func (r *ring[T]) empty() bool {
	return r.slots[r.head&r.mask].seq.Load() != r.head+1
}
