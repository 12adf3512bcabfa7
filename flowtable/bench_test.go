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

// The rivals hold both tuples of a flow, as the table does. Their value is a
// pointer to an entry of the size of ours, which is what a Go program would
// write first.
type rival interface {
	insert(f *Flow)
	lookup(k *Tuple) bool
}

type ours struct{ *Table }

func (o ours) insert(f *Flow) { o.Insert(f, &dgram, start) }
func (o ours) lookup(k *Tuple) bool {
	r, _ := o.Lookup(k)
	return r != 0
}

type lockedMap struct {
	mu sync.RWMutex
	m  map[Tuple]*Entry
}

func (m *lockedMap) insert(f *Flow) {
	e := new(Entry)
	m.mu.Lock()
	m.m[f.Inner], m.m[f.Reply()] = e, e
	m.mu.Unlock()
}

func (m *lockedMap) lookup(k *Tuple) bool {
	m.mu.RLock()
	e := m.m[*k]
	m.mu.RUnlock()
	return e != nil
}

type syncMap struct{ sync.Map }

func (m *syncMap) insert(f *Flow) {
	e := new(Entry)
	m.Store(f.Inner, e)
	m.Store(f.Reply(), e)
}

func (m *syncMap) lookup(k *Tuple) bool {
	_, ok := m.Load(*k)
	return ok
}

const million = 1_000_000

func rivals(b *testing.B, flows int) map[string]func() rival {
	return map[string]func() rival{
		"spillway": func() rival {
			t, err := Open(Config{MaxFlows: flows, MaxFlowsPerTask: flows}, start)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { t.Close() })
			return ours{t}
		},
		"rwmutex-map": func() rival { return &lockedMap{m: map[Tuple]*Entry{}} },
		"sync.Map":    func() rival { return &syncMap{} },
		"xsync":       newXsync,
	}
}

var rivalNames = []string{"spillway", "rwmutex-map", "xsync", "sync.Map"}

func benchFlow(i int) Flow {
	f := flowOf(protoUDP, uint32(i%1000), uint16(i))
	f.Inner.Dst[14], f.Inner.Dst[15] = byte(i>>24), byte(i>>16)
	f.OutsidePort = uint16(i)
	return f
}

// shuffled returns the tuples of n flows, of both directions, in random order.
func shuffled(n int) []Tuple {
	k := make([]Tuple, n)
	r := rand.New(rand.NewPCG(1, 1))
	for i, j := range r.Perm(n) {
		f := benchFlow(j)
		if k[i] = f.Inner; j%2 == 0 {
			k[i] = f.Reply()
		}
	}
	return k
}

// measure runs one step b.N times and reports CPU time beside wall time.
func measure(b *testing.B, step func(i int)) {
	b.ReportAllocs()
	b.ResetTimer()
	from := cpuTime()
	for i := range b.N {
		step(i)
	}
	b.ReportMetric(float64(cpuTime()-from)/float64(b.N), "cpu-ns/op")
}

// BenchmarkFlows measures the table beside what else one might take, with
// 1,000,000 flows: ns per insert, per lookup of one hot flow, per lookup of a
// random flow by one and by two goroutines, and the time of a full garbage
// collection.
func BenchmarkFlows(b *testing.B) {
	keys := shuffled(million)
	for _, name := range rivalNames {
		if rivals(b, 1)[name] == nil {
			continue
		}
		var t rival
		ready := func(b *testing.B) {
			if t == nil {
				t = rivals(b, million)[name]()
				for i := range million {
					f := benchFlow(i)
					t.insert(&f)
				}
				runtime.GC()
			}
		}
		b.Run(name, func(b *testing.B) {
			b.Run("insert", func(b *testing.B) {
				b.ReportAllocs()
				var cpu time.Duration
				for n := 0; n < b.N; {
					b.StopTimer()
					t := rivals(b, million)[name]()
					flows := make([]Flow, min(million, b.N-n))
					for i := range flows {
						flows[i] = benchFlow(i)
					}
					runtime.GC()
					b.StartTimer()
					from := cpuTime()
					for i := range flows {
						t.insert(&flows[i])
					}
					cpu += cpuTime() - from
					n += len(flows)
				}
				b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
			})
			ready(b)
			b.Run("hot", func(b *testing.B) {
				measure(b, func(int) {
					if !t.lookup(&keys[77]) {
						b.Fatal("not found")
					}
				})
			})
			b.Run("random", func(b *testing.B) {
				measure(b, func(i int) {
					if !t.lookup(&keys[i%million]) {
						b.Fatal("not found")
					}
				})
			})
			b.Run("random-2", func(b *testing.B) {
				var next atomic.Int64
				b.SetParallelism(1)
				b.RunParallel(func(pb *testing.PB) {
					for i := int(next.Add(1)) * million / 3; pb.Next(); i++ {
						if !t.lookup(&keys[i%million]) {
							b.Error("not found")
							return
						}
					}
				})
			})
			b.Run("gc", func(b *testing.B) {
				measure(b, func(int) { runtime.GC() })
			})
			if o, ok := t.(ours); ok {
				b.Run("random-batch", func(b *testing.B) {
					var found [64]Found
					from := cpuTime()
					for n := 0; n < b.N; n += len(found) {
						at := n % (million - len(found))
						o.LookupBatch(keys[at:at+len(found)], found[:])
						if found[5].Ref == 0 {
							b.Fatal("not found")
						}
					}
					b.ReportMetric(float64(cpuTime()-from)/float64(b.N), "cpu-ns/op")
				})
				b.Run("memory", func(b *testing.B) {
					for range b.N {
						b.ReportMetric(float64(len(o.region.bytes()))/million, "B/flow")
					}
				})
			}
			runtime.KeepAlive(t)
			t = nil
		})
	}
	b.Run("nothing/gc", func(b *testing.B) {
		measure(b, func(int) { runtime.GC() })
	})
	runtime.KeepAlive(keys)
}

// BenchmarkPath is what one packet of a known flow costs.
func BenchmarkPath(b *testing.B) {
	const flows = 1 << 16
	tab := openTable(b, Config{MaxFlows: flows, MaxFlowsPerTask: flows})
	u := flowOf(protoUDP, 1, 1)
	uref, _ := tab.Insert(&u, &dgram, start)
	f := flowOf(protoTCP, 1, 2)
	ref, _ := tab.Insert(&f, &Segment{Flags: syn, Seq: 100, Window: 60000}, start)
	tab.Observe(ref, Inbound, &Segment{Flags: syn | ack, Seq: 500, Ack: 101, Window: 60000}, start)
	s := Segment{Flags: ack, Seq: 101, Ack: 501, Window: 60000, Len: 1400, Wire: 1, Bytes: 1440}
	if why := tab.Observe(ref, Outbound, &s, start); why != packet.OK {
		b.Fatal(why)
	}
	b.Run("observe-udp", func(b *testing.B) {
		measure(b, func(int) {
			tab.Observe(uref, Outbound, &dgram, start)
		})
	})
	b.Run("observe-tcp", func(b *testing.B) {
		measure(b, func(int) {
			tab.Observe(ref, Outbound, &s, start)
		})
	})
	b.Run("lookup-observe-tcp", func(b *testing.B) {
		measure(b, func(int) {
			r, d := tab.Lookup(&f.Inner)
			tab.Observe(r, d, &s, start)
		})
	})
	b.Run("insert-remove", func(b *testing.B) {
		measure(b, func(i int) {
			f := benchFlow(i % flows)
			r, _ := tab.Insert(&f, &dgram, start)
			tab.Remove(r)
		})
	})
	b.Run("sweep-entry", func(b *testing.B) {
		tab := openTable(b, Config{MaxFlows: million, MaxFlowsPerTask: million})
		for i := range million {
			f := benchFlow(i)
			tab.Insert(&f, &dgram, start)
		}
		b.ResetTimer()
		for n := 0; n < b.N; n += 1000 {
			tab.Sweep(start+Mono(time.Second), 1000)
		}
	})
}
