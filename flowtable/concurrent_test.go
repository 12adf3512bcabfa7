package flowtable

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

func TestT20_SameFlowOnTwoCoresIsOneFlow(t *testing.T) {
	tab := openTable(t, Config{MaxFlows: 1 << 14, MaxFlowsPerTask: 1 << 14})
	const rounds = 3000
	for i := range rounds {
		var wg sync.WaitGroup
		var refs [2]Ref
		var whys [2]Reason
		var gate atomic.Int32
		for g := range refs {
			wg.Go(func() {
				f := flowOf(protoUDP, 1, uint16(i))
				f.OutsidePort += uint16(g % 2 * (i % 2) * 30_000) // sometimes both chose another port
				for gate.Add(1); gate.Load() < 2; {
					runtime.Gosched()
				}
				refs[g], whys[g] = tab.Insert(&f, &dgram, start)
				if whys[g] == packet.FlowExists {
					if why := tab.Observe(refs[g], Outbound, &dgram, start); why != packet.OK {
						t.Errorf("second packet: %v", why)
					}
				}
			})
		}
		wg.Wait()
		if refs[0] != refs[1] || whys[0]+whys[1] != packet.OK+packet.FlowExists {
			t.Fatalf("round %d: refs %x, reasons %v; want one flow", i, refs, whys)
		}
		if c := tab.Entry(refs[0]).Counters(); c.OutPackets != 2 {
			t.Fatalf("round %d: %d packets counted, want 2", i, c.OutPackets)
		}
	}
	if tab.Len() != rounds {
		t.Errorf("%d flows, want %d", tab.Len(), rounds)
	}
}

// TestConcurrentUse lets workers insert, look up, observe, remove and sweep the
// same few flows in a table that is too small for them. Nobody may ever be
// given a flow other than the one asked for, and the counts must be right
// afterwards.
func TestConcurrentUse(t *testing.T) {
	var removed atomic.Int64
	tab := openTable(t, Config{MaxFlows: 300, MaxFlowsPerTask: 200, MaxHalfOpenPerTask: 20, OnRemove: func(e *Entry) {
		removed.Add(1)
		if e.Counters().OutPackets == 0 {
			t.Error("removed flow without a packet")
		}
	}})
	var now atomic.Int64
	now.Store(int64(start))
	stop := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 7))
			for n := 0; n&255 != 0 || time.Now().Before(stop); n++ {
				proto := []uint8{protoTCP, protoUDP}[r.IntN(2)]
				f := flowOf(proto, uint32(r.IntN(3)), uint16(r.IntN(400)))
				f.Rule = uint32(f.Inner.SrcPort)
				at := Mono(now.Add(1000))
				k, want := f.Inner, Outbound
				if r.IntN(2) == 0 {
					k, want = f.Reply(), Inbound
				}
				s := Segment{Flags: []uint8{syn, ack, rst, syn | ack}[r.IntN(4)], Seq: uint32(r.IntN(3)), Ack: uint32(r.IntN(3)), Wire: 1, Bytes: 40}
				ref, d := tab.Lookup(&k)
				if ref == 0 {
					s.Flags = syn
					tab.Insert(&f, &s, at)
					continue
				}
				if d != want {
					t.Errorf("direction %v, want %v", d, want)
				}
				var l Flow
				if tab.Load(ref, &l) && (l.Reply() != k && l.Inner != k || l.Rule != uint32(l.Inner.SrcPort)) {
					t.Errorf("asked for %+v, got %+v", k, l)
				}
				switch r.IntN(8) {
				case 0:
					tab.Remove(ref)
				case 1:
					tab.Sweep(at+Mono(r.IntN(2))*Mono(200*time.Second), 50)
				case 2:
					tab.All(func(r Ref, e *Entry) bool { e.Counters(); e.State(); e.Last(); return r%16 != 0 })
				default:
					tab.Observe(ref, d, &s, at)
				}
			}
		})
	}
	wg.Wait()
	s := tab.Stats()
	if int(s.Inserted)-int(removed.Load()) != s.Flows {
		t.Errorf("inserted %d, removed %d, but %d flows", s.Inserted, removed.Load(), s.Flows)
	}
	all, half := 0, 0
	for task := range uint32(3) {
		a, h := tab.TaskFlows(task)
		all, half = all+a, half+h
	}
	found, foundHalf := 0, 0
	tab.All(func(r Ref, e *Entry) bool {
		found++
		if e.State().HalfOpen() {
			foundHalf++
		}
		in, out := e.Reply(), e.Inner()
		a, _ := tab.Lookup(&in)
		b, _ := tab.Lookup(&out)
		if a != r || b != r {
			t.Errorf("flow %x is found as %x and %x", r, a, b)
		}
		return true
	})
	if all != s.Flows || found != s.Flows || half != foundHalf || half != s.HalfOpen {
		t.Errorf("flows: table %d, tasks %d, found %d; half-open: table %d, tasks %d, found %d", s.Flows, all, found, s.HalfOpen, half, foundHalf)
	}
	tab.Sweep(Mono(now.Load())+Mono(500_000*time.Second), 1000)
	if tab.Len() != 0 {
		t.Fatalf("%d flows left", tab.Len())
	}
	for i := range tab.index.buckets {
		if tab.index.buckets[i] != (bucket{}) {
			t.Fatalf("bucket %d of an empty table: %+v", i, tab.index.buckets[i])
		}
	}
}

func TestZ11_IndexHoldsFullTable(t *testing.T) {
	const flows = 20_000
	tab := openTable(t, Config{MaxFlows: flows, MaxFlowsPerTask: flows})
	for round := range 3 { // the index must not wear out
		n := 0
		for i := 0; n < flows; i++ {
			f := flowOf(protoUDP, 1, uint16(i))
			f.Inner.Dst[12] = byte(i >> 16)
			f.OutsidePort = uint16(i)
			if _, why := tab.Insert(&f, &dgram, start); why != packet.OK {
				t.Fatalf("round %d: flow %d of %d: %v", round, n, flows, why)
			}
			n++
		}
		longest := 0
		for i := range tab.index.buckets {
			run := 0
			for b := uint32(i); tab.index.buckets[b].over > 0; b = tab.index.following(b) {
				run++
			}
			longest = max(longest, run)
		}
		if longest > maxProbe/2 {
			t.Errorf("round %d: longest search is %d buckets", round, longest)
		}
		tab.All(func(r Ref, _ *Entry) bool { tab.Remove(r); return true })
	}
}

func TestZ11_HashIsKeyed(t *testing.T) {
	f := flowOf(protoUDP, 1, 1)
	k := keyOf(&f.Inner)
	a, b := newSecret([32]byte{1}), newSecret([32]byte{2})
	if a.hash(&k) == b.hash(&k) {
		t.Error("two secrets give one hash")
	}
	if c := newSecret([32]byte{1}); a.hash(&k) != c.hash(&k) {
		t.Error("one secret gives two hashes: flows would be lost on reopening")
	}
	r1, r2 := newSecret([32]byte{}), newSecret([32]byte{})
	if r1 == r2 {
		t.Error("random secrets repeat")
	}
	// Every input bit changes about half of the bits that matter.
	base := a.hash(&k)
	for bit := range 40 + 64*4 {
		x := k
		*[]*uint64{&x.p, &x.a, &x.b, &x.c, &x.d}[(bit+24)/64] ^= 1 << ((bit + 24) % 64)
		if bit < 40 {
			x = k
			x.p ^= 1 << bit
		}
		d, n := base^a.hash(&x), 0
		for ; d != 0; d &= d - 1 {
			n++
		}
		if n < 12 {
			t.Errorf("input bit %d changes only %d bits", bit, n)
		}
	}
}
