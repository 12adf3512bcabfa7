package flowtable

import (
	"sync/atomic"

	"github.com/fe919326/spillway/internal/packet"
)

// stripeCount is the number of locks for tuples. Equal tuples have equal homes
// in the index, and equal homes have the same lock.
const stripeCount = 256

// Insert adds flow f, whose first packet is s, and counts that packet. The
// reasons:
//
//	OK             the flow is in the table; Ref names it
//	FlowExists     the inner tuple has a flow, which another worker inserted:
//	               Observe s on the Ref
//	TupleTaken     the reply tuple belongs to another flow, or is held for one
//	               that finished: try another outside port
//	TableFull      no free entry, or too many handshakes of all tasks
//	TaskFlowLimit  the task is at its cap of flows
//	NoFlow         TCP, and s may not start a flow
//	UnsupportedProtocol
//
// A flow that expired, or that is finished and may be reopened by s for the
// same task (T13), makes room: it is removed first. At the task's cap of
// half-open flows its oldest one is removed (T18). No other flow ever is (T19).
func (t *Table) Insert(f *Flow, s *Segment, now Mono) (Ref, Reason) {
	var c conn
	switch f.Inner.Proto {
	case protoTCP:
		if !c.start(s, t.loose(now)) {
			return 0, packet.NoFlow
		}
		if t.cfg.Mode == Liberal {
			c.flags |= flagLiberal
		}
	case protoUDP, protoICMP, protoICMPv6:
		c.state = OneWay
	default:
		return 0, packet.UnsupportedProtocol
	}
	reply := f.Reply()
	out, in := keyOf(&f.Inner), keyOf(&reply)
	if out == in {
		return 0, packet.TupleTaken // from itself to itself
	}
	ho, hi := t.secret.hash(&out), t.secret.hash(&in)
	// Both buckets are wanted at once: ask for them before the first lock.
	bo, bi := t.index.home(ho), t.index.home(hi)
	atomic.LoadUint64(&t.index.buckets[bo].over)
	atomic.LoadUint64(&t.index.buckets[bi].over)

	// What stands in the way is removed without the locks, then it is tried
	// again. Bounded, because another worker may put the like back.
	const tries = 8
	for range tries {
		t.lockPair(bo, bi)
		old, r := t.obstacle(&out, &in, ho, hi, f.Task, s, now)
		if old != 0 {
			t.unlockPair(bo, bi)
			if r != packet.OK {
				return old, r
			}
			if t.remove(old, nil) {
				t.stats.reopened.Add(1)
			}
			continue
		}
		if r != packet.OK {
			t.unlockPair(bo, bi)
			return 0, r
		}
		switch a := t.tasks.acquire(f.Task, c.state.HalfOpen()); a {
		case admitted:
		case overHalf, overHalfTotal:
			t.unlockPair(bo, bi)
			if !t.evictHalf(f.Task) {
				return 0, a.reason()
			}
			continue
		default:
			t.unlockPair(bo, bi)
			return 0, a.reason()
		}
		ref := t.place(f, s, &c, ho, hi, now)
		t.unlockPair(bo, bi)
		if ref == 0 {
			t.tasks.release(f.Task, c.state.HalfOpen())
			// Something may have expired unnoticed.
			if t.Sweep(now, sweepWhenFull) == 0 {
				return 0, packet.TableFull
			}
			continue
		}
		if c.state.HalfOpen() {
			t.tasks.queue(f.Task, ref, t.isHalf)
		}
		return ref, packet.OK
	}
	return 0, packet.TableFull
}

// loose reports whether a TCP flow may start mid-stream.
func (t *Table) loose(now Mono) bool { return t.cfg.Mode == Liberal || now < t.cfg.LoosePickup }

// obstacle looks for flows that have one of the two tuples. It returns one to
// be removed (OK), or one that stays and why, or none (0, OK; 0, TupleTaken if
// it is not to be named). Both stripes are held.
func (t *Table) obstacle(out, in *key, ho, hi uint64, task uint32, s *Segment, now Mono) (Ref, Reason) {
	if r, d := t.find(out, ho); r != 0 {
		switch {
		case t.over(r, task, s, now):
			return r, packet.OK
		case d == Outbound:
			return r, packet.FlowExists
		}
		return 0, packet.TupleTaken
	}
	if r, _ := t.find(in, hi); r != 0 {
		if t.over(r, task, s, now) {
			return r, packet.OK
		}
		return 0, packet.TupleTaken
	}
	return 0, packet.OK
}

// over reports whether flow r has expired, or is finished and s of the same
// task may reopen it.
func (t *Table) over(r Ref, task uint32, s *Segment, now Mono) bool {
	e := t.entry(r)
	m, ok := e.lockFlow(r.gen())
	if !ok {
		return true // left meanwhile: try again
	}
	gone := tickOf(now) >= e.expire
	if !gone && m.state().Finished() && e.task == task {
		var c conn
		e.read(m, &c)
		gone = c.mayReopen(s)
	}
	e.unlock(m)
	return gone
}

// place makes the entry of a flow and lets it be found. It returns 0 if there
// is no room. Both stripes are held.
func (t *Table) place(f *Flow, s *Segment, c *conn, ho, hi uint64, now Mono) Ref {
	e, i := t.free.take()
	if e == nil {
		return 0
	}
	m := e.load().next().with(c.state, c.flags, NoState)
	e.fill(f, s, c, identitySum(ho, hi), now)
	if f.Inner.Proto == protoTCP {
		e.touch(now, tickAfter(now, t.cfg.Timeouts.tcp(c.state, c.flags)))
	} else {
		e.touch(now, tickAfter(now, t.cfg.Timeouts.datagram(f.Inner.Proto, f.Inner.DstPort, OneWay, Outbound)))
	}
	// Slots of an entry that is free are passed over.
	so := slotOf(ho, Outbound, i)
	ok := t.index.put(ho, so)
	if ok && !t.index.put(hi, slotOf(hi, Inbound, i)) {
		t.index.drop(ho, so)
		ok = false
	}
	if !ok {
		t.stats.indexFull.Add(1)
		t.free.give(i)
		return 0
	}
	// The commit: now there is a flow, all of it, for readers and after a crash.
	e.unlock(m)
	t.stats.inserted.Add(1)
	return makeRef(i, m)
}

// fill writes everything but meta.
func (e *Entry) fill(f *Flow, s *Segment, c *conn, sum uint8, now Mono) {
	k := keyOf(&f.Inner)
	reply := f.Reply()
	o := keyOf(&reply)
	for i, w := range [6]uint64{k.a, k.b, k.c, k.d, o.c, o.d} {
		put64(&e.addr[i], w)
	}
	put64(&e.ports, k.p&0xffffffff|uint64(f.OutsidePort)<<32|uint64(f.Inner.Proto)<<48|uint64(sum)<<56)
	e.seen = [2]uint8{}
	e.lo, e.hi = [4]uint32{}, [4]uint16{}
	put32(&e.expire, 0)
	put32(&e.last, 0)
	put64(&e.created, uint64(now))
	put32(&e.task, f.Task)
	put32(&e.rule, f.Rule)
	put32(&e.policy, f.Policy)
	put32(&e.pmtu, 0)
	for i := range e.words {
		e.words[i].Store(0)
	}
	e.write(c)
	e.count1(Outbound, s)
}

// identitySum is a short sum over the identity of a flow: Open drops entries
// where it is wrong.
func identitySum(ho, hi uint64) uint8 { return uint8((ho ^ hi>>8) >> 32) }

func (t *Table) lockPair(a, b uint32) {
	a, b = a%stripeCount, b%stripeCount
	if a > b {
		a, b = b, a
	}
	t.stripes[a].Lock()
	if a != b {
		t.stripes[b].Lock()
	}
}

func (t *Table) unlockPair(a, b uint32) {
	a, b = a%stripeCount, b%stripeCount
	t.stripes[a].Unlock()
	if a != b {
		t.stripes[b].Unlock()
	}
}
