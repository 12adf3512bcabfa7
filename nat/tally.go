package nat

import "unsafe"

// tally counts by 64-bit key. It is an open-addressing hash table of 16-byte
// slots without pointers, so that a million of them cost the garbage collector
// nothing. Keys must be unguessable and evenly spread: they are outputs of a
// keyed function, used as they are. It grows when three quarters full and
// shrinks when one eighth full, so its memory follows what it counts. It is not
// safe for concurrent use.
type tally struct {
	slots []slot // length 0 or a power of two
	used  int
}

// slot is one count. A slot with n 0 is empty.
type slot struct {
	key uint64
	n   uint32
	// tag is for the owner of the tally to use. It is lost with the slot.
	tag uint32
}

// slotBytes is the size of a slot.
const slotBytes = int(unsafe.Sizeof(slot{}))

// minSlots is the smallest table. It is kept once it was made.
const minSlots = 16

// find returns the slot of key, or nil if its count is 0. It is valid until
// the next add or sub.
func (t *tally) find(key uint64) *slot {
	if len(t.slots) == 0 {
		return nil
	}
	mask := uint64(len(t.slots) - 1)
	for i := key & mask; ; i = (i + 1) & mask {
		s := &t.slots[i]
		if s.n == 0 {
			return nil
		}
		if s.key == key {
			return s
		}
	}
}

// count returns the count of key.
func (t *tally) count(key uint64) uint32 {
	if s := t.find(key); s != nil {
		return s.n
	}
	return 0
}

// add raises the count of key by one and returns its slot, valid until the
// next add or sub.
func (t *tally) add(key uint64) *slot {
	if s := t.find(key); s != nil {
		s.n++
		return s
	}
	if (t.used+1)*4 > len(t.slots)*3 {
		t.resize(max(minSlots, 2*len(t.slots)))
	}
	s := t.free(key)
	*s = slot{key: key, n: 1}
	t.used++
	return s
}

// sub lowers the count of key by one and returns what it was before with its
// tag: n 0 if there was nothing to lower.
func (t *tally) sub(key uint64) slot {
	s := t.find(key)
	if s == nil {
		return slot{}
	}
	before := *s
	if s.n--; s.n == 0 {
		t.remove(s)
	}
	return before
}

// free returns the empty slot where key, which is not in t, belongs.
func (t *tally) free(key uint64) *slot {
	mask := uint64(len(t.slots) - 1)
	i := key & mask
	for t.slots[i].n != 0 {
		i = (i + 1) & mask
	}
	return &t.slots[i]
}

// remove closes the gap that the emptied slot s leaves, by moving later slots
// of its run back (Knuth, TAOCP 3, 6.4, algorithm R): no tombstones, so that a
// table in constant churn stays as fast as a new one.
func (t *tally) remove(s *slot) {
	mask := uint64(len(t.slots) - 1)
	gap := s.key & mask
	for &t.slots[gap] != s {
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; t.slots[i].n != 0; i = (i + 1) & mask {
		// A slot may move to the gap if its home is not behind the gap.
		home := t.slots[i].key & mask
		if (i-home)&mask >= (i-gap)&mask {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = slot{}
	t.used--
	if len(t.slots) > minSlots && t.used*8 < len(t.slots) {
		t.resize(len(t.slots) / 2)
	}
}

func (t *tally) resize(n int) {
	old := t.slots
	t.slots = make([]slot, n)
	for i := range old {
		if old[i].n != 0 {
			*t.free(old[i].key) = old[i]
		}
	}
}
