package flowtable

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

// twin is the table as one would write it without any care for speed.
type twin struct {
	cfg   Config
	flows map[Tuple]*twinFlow // by both tuples
}

type twinFlow struct {
	f       Flow
	ref     Ref
	c       conn
	expire  uint32
	created Mono
	count   Counters
}

func (w *twin) each(f func(*twinFlow)) {
	for k, e := range w.flows {
		if k == e.f.Inner {
			f(e)
		}
	}
}

func (w *twin) counts(task uint32) (all, half, allHalf int, oldest *twinFlow) {
	w.each(func(e *twinFlow) {
		if e.c.state.HalfOpen() {
			allHalf++
		}
		if e.f.Task != task {
			return
		}
		all++
		if e.c.state.HalfOpen() {
			half++
			if oldest == nil || e.created < oldest.created {
				oldest = e
			}
		}
	})
	return
}

func (w *twin) remove(e *twinFlow) {
	delete(w.flows, e.f.Inner)
	delete(w.flows, e.f.Reply())
}

// sweep removes what expired.
func (w *twin) sweep(now Mono) (n int) {
	w.each(func(e *twinFlow) {
		if e.expire <= tickOf(now) {
			w.remove(e)
			n++
		}
	})
	return n
}

func (w *twin) insert(f *Flow, s *Segment, now Mono) (*twinFlow, Reason) {
	e := &twinFlow{f: *f, created: now}
	if f.Inner.Proto == protoTCP {
		if !e.c.start(s, now < w.cfg.LoosePickup) {
			return nil, packet.NoFlow
		}
		e.expire = tickAfter(now, w.cfg.Timeouts.tcp(e.c.state, e.c.flags))
	} else {
		e.c.state = OneWay
		e.expire = tickAfter(now, w.cfg.Timeouts.datagram(f.Inner.Proto, f.Inner.DstPort, OneWay, Outbound))
	}
	for _, k := range []Tuple{f.Inner, f.Reply()} {
		old := w.flows[k]
		if old == nil {
			continue
		}
		switch {
		case old.expire <= tickOf(now), old.c.state.Finished() && old.f.Task == f.Task && old.c.mayReopen(s):
			w.remove(old)
			return w.insert(f, s, now)
		case k == f.Inner && old.f.Inner == k:
			return old, packet.FlowExists
		}
		return nil, packet.TupleTaken
	}
	all, half, allHalf, oldest := w.counts(f.Task)
	if all >= w.cfg.MaxFlowsPerTask {
		return nil, packet.TaskFlowLimit
	}
	if e.c.state.HalfOpen() && (half >= w.cfg.MaxHalfOpenPerTask || allHalf >= w.cfg.MaxHalfOpen) {
		if oldest == nil {
			return nil, packet.TableFull
		}
		w.remove(oldest)
		return w.insert(f, s, now)
	}
	if len(w.flows) == 2*w.cfg.MaxFlows && w.sweep(now) == 0 {
		return nil, packet.TableFull
	}
	e.tally(Outbound, s)
	w.flows[f.Inner], w.flows[f.Reply()] = e, e
	return e, packet.OK
}

func (e *twinFlow) tally(d Direction, s *Segment) {
	if d == Outbound {
		e.count.OutPackets += uint64(max(s.Wire, 1))
		e.count.OutBytes += uint64(s.Bytes)
	} else {
		e.count.InPackets += uint64(max(s.Wire, 1))
		e.count.InBytes += uint64(s.Bytes)
	}
}

func (w *twin) observe(e *twinFlow, d Direction, s *Segment, now Mono) Reason {
	tcp := e.f.Inner.Proto == protoTCP
	if e.expire <= tickOf(now) {
		if d == Outbound && (!tcp || s.startsTCP()) {
			return packet.NoFlow
		}
		return packet.FlowExpired
	}
	if !tcp {
		if d == Inbound {
			e.c.state = TwoWay
		}
		e.expire = tickAfter(now, w.cfg.Timeouts.datagram(e.f.Inner.Proto, e.f.Inner.DstPort, e.c.state, d))
		e.tally(d, s)
		return packet.OK
	}
	c := e.c
	r := c.step(d, s)
	if r.reason() == packet.OK {
		e.c = c
		e.tally(d, s)
	}
	if r == refresh {
		e.expire = tickAfter(now, w.cfg.Timeouts.tcp(c.state, c.flags))
	}
	return r.reason()
}

// copied is memory that a former process left.
type copied struct{ heapRegion }

func (copied) fresh() bool { return false }

func copyOf(mem []byte) region {
	c := newHeapRegion(len(mem))
	copy(c.mem, mem)
	return &copied{*c}
}

// play runs operations that it reads from ops against a table and its twin.
func play(t *testing.T, ops []byte) {
	cfg := Config{MaxFlows: 48, MaxFlowsPerTask: 20, MaxHalfOpenPerTask: 4, MaxHalfOpen: 10, Secret: [32]byte{1}, LoosePickup: start + Mono(10*time.Minute)}
	if err := cfg.fill(); err != nil {
		t.Fatal(err)
	}
	w := &twin{cfg: cfg, flows: map[Tuple]*twinFlow{}}
	gone := 0
	cfg.OnRemove = func(e *Entry) {
		gone++
		if e.Counters().OutPackets == 0 {
			t.Error("OnRemove of an entry without a first packet")
		}
	}
	tab, err := openRegion(cfg, newHeapRegion(sizeFor(cfg.MaxFlows)), start)
	if err != nil {
		t.Fatal(err)
	}
	now := start
	next := func() int {
		if len(ops) == 0 {
			return 0
		}
		b := ops[0]
		ops = ops[1:]
		return int(b)
	}
	var old []Ref // of flows that left
	// Sequence numbers near what the flow is at, so that states are reached.
	segment := func(e *twinFlow, d Direction) Segment {
		flags := []uint8{syn, ack, ack, fin | ack, rst, syn | ack, rst | ack, ack}[next()%8]
		s := Segment{Flags: flags, Window: uint16(next() * 200), Len: uint32(next() % 4 * 100), Wire: uint32(next() % 3), Bytes: 40}
		if flags&syn != 0 {
			s.Len = 0
		}
		if e != nil {
			snd, rcv := &e.c.win[d.side()], &e.c.win[d.other().side()]
			s.Seq, s.Ack = snd.end, rcv.end
			if flags == syn|ack && snd.maxWin != 0 {
				s.Seq--
			}
		} else {
			s.Seq = uint32(next()) << 24
		}
		switch next() % 8 {
		case 0:
			s.Seq += uint32(next()) * 300
		case 1:
			s.Seq -= uint32(next()) * 300
		case 2:
			s.Ack += uint32(next()) * 300
		}
		return s
	}
	for step := 0; len(ops) > 0; step++ {
		now++
		op := next()
		f := flowOf([]uint8{protoTCP, protoTCP, protoUDP, protoICMP}[next()%4], uint32(next()%4), uint16(next()%12))
		if next()%4 == 0 {
			f.OutsidePort = 20000 + uint16(next()%12)
		}
		if f.Inner.Proto == protoUDP && next()%2 == 0 {
			f.Inner.DstPort = portDNS
		}
		e := w.flows[f.Inner]
		d := Outbound
		if next()%2 == 0 {
			d = Inbound
		}
		switch op % 16 {
		default:
			if e != nil {
				s := segment(e, d)
				got, want := tab.Observe(e.ref, d, &s, now), w.observe(e, d, &s, now)
				if got != want {
					t.Fatalf("step %d: Observe %v %+v: got %v, want %v", step, d, s, got, want)
				}
				break
			}
			fallthrough
		case 0, 1, 2:
			s := segment(nil, Outbound)
			before := map[Ref]bool{}
			w.each(func(e *twinFlow) { before[e.ref] = true })
			r, got := tab.Insert(&f, &s, now)
			x, want := w.insert(&f, &s, now)
			if got != want {
				t.Fatalf("step %d: Insert %+v %+v: got %v, want %v", step, f, s, got, want)
			}
			switch got {
			case packet.OK:
				x.ref = r
			case packet.FlowExists:
				if r != x.ref {
					t.Fatalf("step %d: FlowExists names %x, want %x", step, r, x.ref)
				}
			}
			w.each(func(e *twinFlow) { delete(before, e.ref) })
			for r := range before {
				old = append(old, r)
			}
		case 3:
			if e != nil {
				if !tab.Remove(e.ref) {
					t.Fatalf("step %d: Remove found nothing", step)
				}
				old = append(old, e.ref)
				w.remove(e)
			}
		case 4:
			now += Mono(next()) * Mono(time.Second) / 4
		case 5:
			if next()%8 == 0 {
				now += Mono(next()) * Mono(40*time.Second)
			}
		case 6:
			if got, want := tab.Sweep(now, 1000), w.sweep(now); got != want {
				t.Fatalf("step %d: swept %d, want %d", step, got, want)
			}
		case 7:
			if next()%4 == 0 { // a crash
				tab, err = openRegion(cfg, copyOf(tab.region.bytes()), now)
				if err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				dropped := w.sweep(now)
				if s := tab.Stats(); int(s.Dropped) != dropped || int(s.Recovered) != len(w.flows)/2 {
					t.Fatalf("step %d: recovered %d, dropped %d; want %d, %d", step, s.Recovered, s.Dropped, len(w.flows)/2, dropped)
				}
			}
		}
		if step%8 == 0 || len(ops) == 0 {
			agree(t, tab, w, step)
			for _, r := range old {
				if tab.Entry(r) != nil {
					t.Fatalf("step %d: ref %x of a flow that left finds something", step, r)
				}
			}
		}
	}
}

// agree compares everything that can be seen.
func agree(t *testing.T, tab *Table, w *twin, step int) {
	t.Helper()
	if got, want := tab.Len(), len(w.flows)/2; got != want {
		t.Fatalf("step %d: %d flows, want %d", step, got, want)
	}
	for k, e := range w.flows {
		d := Inbound
		if k == e.f.Inner {
			d = Outbound
		}
		r, got := tab.Lookup(&k)
		if r != e.ref || got != d {
			t.Fatalf("step %d: Lookup %+v: got %x %v, want %x %v", step, k, r, got, e.ref, d)
		}
	}
	keys := []Tuple{{}} // one that is not there
	for k := range w.flows {
		keys = append(keys, k)
	}
	found := make([]Found, len(keys))
	tab.LookupBatch(keys, found)
	for i, k := range keys {
		if r, d := tab.Lookup(&k); found[i] != (Found{r, d}) {
			t.Fatalf("step %d: LookupBatch %+v: got %+v, want %x %v", step, k, found[i], r, d)
		}
	}
	seen := 0
	tab.All(func(r Ref, x *Entry) bool {
		seen++
		e := w.flows[x.Inner()]
		if e == nil || e.ref != r {
			t.Fatalf("step %d: flow %+v should not be there", step, x.Flow())
		}
		if x.Flow() != e.f || x.Reply() != e.f.Reply() || x.State() != e.c.state || x.Counters() != e.count ||
			x.Expires() != monoOf(e.expire) || x.Created() != e.created {
			t.Fatalf("step %d: entry %+v %v %+v expires %d, want %+v %v %+v %d", step,
				x.Flow(), x.State(), x.Counters(), x.Expires(), e.f, e.c.state, e.count, monoOf(e.expire))
		}
		return true
	})
	if seen != tab.Len() {
		t.Fatalf("step %d: All saw %d of %d flows", step, seen, tab.Len())
	}
	half := 0
	for task := range uint32(4) {
		all, h, _, _ := w.counts(task)
		if a, b := tab.TaskFlows(task); a != all || b != h {
			t.Fatalf("step %d: task %d has %d flows, %d half-open; want %d, %d", step, task, a, b, all, h)
		}
		half += h
	}
	if got := tab.Stats().HalfOpen; got != half {
		t.Fatalf("step %d: %d half-open, want %d", step, got, half)
	}
}

func TestModel(t *testing.T) {
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 2))
		ops := make([]byte, 20_000)
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		play(t, ops)
	}
}

func FuzzTable(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0, 1, 2, 3, 4, 5, 6, 7}, 40))
	r := rand.New(rand.NewPCG(9, 9))
	for range 4 {
		ops := make([]byte, 500)
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) { play(t, ops) })
}
