package flowtable

import "sync/atomic"

// sweepWhenFull is how many entries an Insert looks at when the table is full.
const sweepWhenFull = 64

// Remove ends flow r: nobody finds it any more, its tuples are free, no hold.
// It reports false if r is not there.
func (t *Table) Remove(r Ref) bool {
	if !t.remove(r, nil) {
		return false
	}
	t.stats.removed.Add(1)
	return true
}

// remove takes flow r out of the table if it is there and, where cond is not
// nil, cond holds while the entry is held. No lock may be held.
func (t *Table) remove(r Ref, cond func(*Entry, meta) bool) bool {
	e := t.entry(r)
	if e == nil {
		return false
	}
	m, ok := e.lockFlow(r.gen())
	if !ok {
		return false
	}
	if cond != nil && !cond(e, m) {
		e.unlock(m)
		return false
	}
	// From here on the flow is ours: nobody finds or changes it.
	e.unlock(m.in(phaseDead))
	i := r.index()
	out, in := e.keyAt(0), e.keyAt(1)
	ho, hi := t.secret.hash(&out), t.secret.hash(&in)
	t.index.drop(ho, slotOf(ho, Outbound, i))
	t.index.drop(hi, slotOf(hi, Inbound, i))
	t.tasks.release(e.Task(), m.state().HalfOpen())
	if t.cfg.OnRemove != nil {
		t.cfg.OnRemove(e)
	}
	if m, ok := e.lock(); ok {
		e.unlock(m.in(phaseFree))
		t.free.give(i)
	}
	return true
}

// isHalf reports whether r is a half-open flow.
func (t *Table) isHalf(r Ref) bool {
	e := t.entry(r)
	if e == nil {
		return false
	}
	m := e.load()
	return m.live() && m.gen() == r.gen() && m.state().HalfOpen()
}

// evictHalf removes the oldest half-open flow of task.
func (t *Table) evictHalf(task uint32) bool {
	for {
		r := t.tasks.oldestHalf(task, t.isHalf)
		if r == 0 {
			return false
		}
		if t.remove(r, func(_ *Entry, m meta) bool { return m.state().HalfOpen() }) {
			t.stats.evicted.Add(1)
			return true
		}
	}
}

// Sweep looks at up to budget entries, from where the last Sweep stopped, and
// removes the flows among them that expired. It returns how many. A caller
// that sweeps the whole table every few seconds calls it often with a small
// budget: it holds no lock while it looks.
func (t *Table) Sweep(now Mono, budget int) int {
	_, high := t.free.inUse()
	if high == 0 || budget <= 0 {
		return 0
	}
	budget = min(budget, high)
	from := t.advance(budget, high)
	at, removed := tickOf(now), 0
	for n := range budget {
		i := from + n
		if i >= high {
			i -= high
		}
		e := &t.entries[i]
		m := e.load()
		if !m.live() || at < atomic.LoadUint32(&e.expire) {
			continue
		}
		if t.remove(makeRef(uint32(i), m), func(e *Entry, _ meta) bool { return at >= e.expire }) {
			removed++
		}
	}
	t.stats.expired.Add(uint64(removed))
	return removed
}

// advance moves the hand on by n of high entries and returns where it was. The
// hand is an index, not a count: with a count modulo high it would jump, and
// pass entries over, whenever high grows.
func (t *Table) advance(n, high int) int {
	for {
		at := t.hand.Load()
		from := at
		if from >= uint64(high) {
			from = 0
		}
		to := from + uint64(n)
		if to >= uint64(high) {
			to -= uint64(high)
		}
		if t.hand.CompareAndSwap(at, to) {
			return int(from)
		}
	}
}

// All calls f for every flow until f returns false. Flows that come or go
// meanwhile may be missed, none is seen twice. f may remove the flow.
func (t *Table) All(f func(Ref, *Entry) bool) {
	_, high := t.free.inUse()
	for i := range high {
		e := &t.entries[i]
		if m := e.load(); m.live() && !f(makeRef(uint32(i), m), e) {
			return
		}
	}
}
