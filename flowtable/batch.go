package flowtable

import (
	"math/bits"
	"sync/atomic"
)

// Found is an answer of LookupBatch.
type Found struct {
	Ref       Ref // 0 if there is no flow
	Direction Direction
}

// lookahead is how many lookups are under way at once: about what a core can
// have in flight.
const lookahead = 16

// LookupBatch is Lookup for many tuples: out[i] is the answer for keys[i]. out
// must be at least as long as keys. With 1,000,000 flows it takes about 0.6 of
// the time of single lookups, because the cache misses of several tuples
// overlap (BenchmarkFlows, 2026-11-22).
func (t *Table) LookupBatch(keys []Tuple, out []Found) {
	out = out[:len(keys)]
	var w [lookahead]key
	var h [lookahead]uint64
	for len(keys) > 0 {
		n := min(len(keys), lookahead)
		// First all buckets, then all entries: loads whose result nobody waits
		// for.
		for i := range n {
			w[i].set(&keys[i])
			h[i] = t.secret.hash(&w[i])
			atomic.LoadUint64(&t.index.buckets[t.index.home(h[i])].over)
		}
		for i := range n {
			b := &t.index.buckets[t.index.home(h[i])]
			j := bits.TrailingZeros64(b.match(h[i]) | 1<<(slotsPerBucket-1))
			if e := slotEntry(atomic.LoadUint64(&b.slots[j%slotsPerBucket])); int(e) < len(t.entries) {
				t.entries[e].load()
			}
		}
		for i := range n {
			out[i].Ref, out[i].Direction = t.find(&w[i], h[i])
		}
		keys, out = keys[n:], out[n:]
	}
}
