package flowtable

import (
	"math/bits"
	"sync/atomic"
)

// The index finds entries by the hash of a tuple: buckets of one cache line,
// open addressing to the following buckets. A slot never moves, so that a
// reader without a lock never misses a flow, and there are no tombstones: each
// bucket counts the slots that had to go past it, and a search ends at the
// first bucket that nobody went past.
//
// All changes are atomic operations on slots and counts. That no tuple is in
// the index twice is the business of the stripes (see Insert).

const (
	slotsPerBucket = 7
	// loadNum/loadDen is the share of slots in use when the table is full.
	loadNum, loadDen = 4, 5
	// maxProbe is the largest number of buckets from a tuple's own to its
	// slot. With the keyed hash a full table needs about a third of it.
	maxProbe = 128
)

type bucket struct {
	slots [slotsPerBucket]uint64 // 0 is free
	over  uint64                 // slots whose home is here or before, and whose place is behind
}

type index struct {
	buckets []bucket
}

func bucketsFor(maxFlows int) int {
	slots := (2*maxFlows*loadDen + loadNum - 1) / loadNum
	// A little more in tiny tables, where chance matters more.
	return (slots+slotsPerBucket-1)/slotsPerBucket + 4
}

// home is the bucket where a tuple with hash h belongs: the high bits of h.
func (x *index) home(h uint64) uint32 {
	hi, _ := bits.Mul64(h, uint64(len(x.buckets)))
	return uint32(hi)
}

// slotOf packs a slot: 31 low bits of the hash, one bit of direction, and the
// entry's number plus one. A wrong slot is told from the right one without
// touching the entry.
func slotOf(h uint64, d Direction, i uint32) uint64 {
	return h<<33 | uint64(d.side())<<32 | uint64(i+1)
}

func slotSide(s uint64) int     { return int(s >> 32 & 1) }
func slotEntry(s uint64) uint32 { return uint32(s) - 1 }

// match returns the slots of b whose tag is that of h, as bits. It does not
// branch: which slot it is cannot be guessed. Free slots have the tag 0.
func (b *bucket) match(h uint64) uint64 {
	w := h << 33
	return sameTag(&b.slots[0], w) | sameTag(&b.slots[1], w)<<1 | sameTag(&b.slots[2], w)<<2 | sameTag(&b.slots[3], w)<<3 |
		sameTag(&b.slots[4], w)<<4 | sameTag(&b.slots[5], w)<<5 | sameTag(&b.slots[6], w)<<6
}

// sameTag is 1 if the slot has the tag of want, else 0: 31 bits of difference,
// minus one, have their sign set if there is none.
func sameTag(slot *uint64, want uint64) uint64 {
	return ((atomic.LoadUint64(slot)^want)>>33 - 1) >> 63
}

// put adds slot s for hash h. It reports false if no place is free within
// reach, and then has changed nothing.
func (x *index) put(h, s uint64) bool {
	home := x.home(h)
	at := home
	n := min(maxProbe, len(x.buckets))
	for probe := range n {
		b := &x.buckets[at]
		for j := range b.slots {
			if atomic.LoadUint64(&b.slots[j]) == 0 && atomic.CompareAndSwapUint64(&b.slots[j], 0, s) {
				return true
			}
		}
		if probe == n-1 {
			x.uncount(home, probe)
			return false
		}
		// Counted before the slot appears behind, so that a search that could
		// see the slot also sees that it must go on.
		atomic.AddUint64(&b.over, 1)
		at = x.following(at)
	}
	return false
}

// drop removes slot s of hash h.
func (x *index) drop(h, s uint64) bool {
	home := x.home(h)
	at := home
	for probe := range min(maxProbe, len(x.buckets)) {
		b := &x.buckets[at]
		for j := range b.slots {
			if atomic.LoadUint64(&b.slots[j]) == s {
				atomic.StoreUint64(&b.slots[j], 0)
				x.uncount(home, probe)
				return true
			}
		}
		at = x.following(at)
	}
	return false
}

// uncount takes one from the counts of n buckets from home on.
func (x *index) uncount(home uint32, n int) {
	for at := home; n > 0; n-- {
		atomic.AddUint64(&x.buckets[at].over, ^uint64(0))
		at = x.following(at)
	}
}

func (x *index) following(b uint32) uint32 {
	if b++; int(b) == len(x.buckets) {
		return 0
	}
	return b
}
