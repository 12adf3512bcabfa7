package flowtable

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Table is a flow table. See the package comment for its use.
type Table struct {
	// Immutable after Open.
	cfg     Config
	region  region
	secret  secret
	entries []Entry
	index   index

	free  freeList
	tasks tasks
	hand  atomic.Uint64 // where Sweep goes on
	stats counts

	closeOnce sync.Once
	closeErr  error

	stripes [stripeCount]stripe
}

type stripe struct {
	sync.Mutex
	_ [64 - 8]byte
}

// counts are the events since Open.
type counts struct {
	inserted, removed, expired, evicted, reopened, indexFull atomic.Uint64
	// Immutable after Open.
	recovered, dropped uint64
	fresh              bool
}

// Stats is the state of a table at one moment.
type Stats struct {
	Flows    int // finished ones in their hold included
	HalfOpen int
	Tasks    int // with at least one flow
	Capacity int // MaxFlows
	Bytes    int // of mapped memory

	Inserted  uint64 // flows
	Removed   uint64 // by Remove
	Expired   uint64 // by Sweep
	Evicted   uint64 // half-open flows that made room for another of their task
	Reopened  uint64 // expired or finished flows that made room for the same tuple
	IndexFull uint64 // inserts refused because no index slot was within reach

	Recovered uint64 // flows that Open found and kept
	Dropped   uint64 // entries that Open found and did not keep: expired, torn or not valid
	Fresh     bool   // Open made the table new, or emptied one of another boot
}

// Stats returns the state of t. It costs about a microsecond.
func (t *Table) Stats() Stats {
	return Stats{
		Flows: t.Len(), HalfOpen: int(t.tasks.half.Load()), Tasks: t.tasks.len(),
		Capacity: len(t.entries), Bytes: len(t.region.bytes()),
		Inserted: t.stats.inserted.Load(), Removed: t.stats.removed.Load(), Expired: t.stats.expired.Load(),
		Evicted: t.stats.evicted.Load(), Reopened: t.stats.reopened.Load(), IndexFull: t.stats.indexFull.Load(),
		Recovered: t.stats.recovered, Dropped: t.stats.dropped, Fresh: t.stats.fresh,
	}
}

// Len returns the number of flows, finished ones in their hold included.
func (t *Table) Len() int {
	n, _ := t.free.inUse()
	return n
}

// TaskFlows returns the number of flows of a task, and how many of them are
// half-open.
func (t *Table) TaskFlows(task uint32) (flows, halfOpen int) { return t.tasks.count(task) }

// Timeouts returns the timeouts in force, defaults filled in.
func (t *Table) Timeouts() Timeouts { return t.cfg.Timeouts }

// Lookup finds the flow that k belongs to, and the direction of a packet with
// k. It takes no lock and does not look at the clock: Observe does. The Ref is
// 0 if there is no flow.
func (t *Table) Lookup(k *Tuple) (Ref, Direction) {
	var w key
	w.set(k)
	return t.find(&w, t.secret.hash(&w))
}

func (t *Table) find(k *key, h uint64) (Ref, Direction) {
	at := t.index.home(h)
	for probe := 0; probe < maxProbe; probe++ {
		b := &t.index.buckets[at]
		for found := b.match(h); found != 0; found &= found - 1 {
			j := bits.TrailingZeros64(found)
			if j >= slotsPerBucket {
				break // never: for the compiler
			}
			s := atomic.LoadUint64(&b.slots[j])
			i := slotEntry(s)
			if int(i) >= len(t.entries) {
				continue // a free slot looks like tag 0
			}
			e := &t.entries[i]
			m := e.load()
			// The entry must be the same living flow after the comparison.
			if m.live() && e.matches(k, slotSide(s)) && e.load().same(m) {
				return makeRef(i, m), Outbound + Direction(slotSide(s))
			}
		}
		if atomic.LoadUint64(&b.over) == 0 {
			break
		}
		at = t.index.following(at)
	}
	return 0, 0
}

// entry returns the entry that r points to, whatever is in it now.
func (t *Table) entry(r Ref) *Entry {
	if i := r.index(); r != 0 && int(i) < len(t.entries) {
		return &t.entries[i]
	}
	return nil
}

// Entry returns the entry of flow r, or nil if the flow is gone.
func (t *Table) Entry(r Ref) *Entry {
	e := t.entry(r)
	if e == nil {
		return nil
	}
	if m := e.load(); !m.live() || m.gen() != r.gen() {
		return nil
	}
	return e
}

// Load copies what Insert was told about flow r. It reports false if the flow
// is gone; then f is not to be used. Unlike an Entry, what it fills in is never
// a mix of two flows.
func (t *Table) Load(r Ref, f *Flow) bool {
	e := t.Entry(r)
	if e == nil {
		return false
	}
	*f = e.Flow()
	return t.Entry(r) != nil
}

// SetPolicy records that rule of policy version allows flow r from now on. It
// reports false if the flow is gone.
func (t *Table) SetPolicy(r Ref, rule, version uint32) bool {
	e := t.entry(r)
	if e == nil {
		return false
	}
	m, ok := e.lockFlow(r.gen())
	if !ok {
		return false
	}
	atomic.StoreUint32(&e.rule, rule)
	atomic.StoreUint32(&e.policy, version)
	e.unlock(m)
	return true
}

// Close gives the memory back. A file stays, with all flows in it, for the next
// Open. Nobody may use t, or an Entry of it, during or after Close. Closing
// twice is fine.
func (t *Table) Close() error {
	t.closeOnce.Do(func() { t.closeErr = t.region.close() })
	return t.closeErr
}
