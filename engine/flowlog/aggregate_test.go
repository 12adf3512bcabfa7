package flowlog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// collect returns an emit function and what it was given.
func collect() (func(*Record), *[]Record) {
	var got []Record
	return func(r *Record) { got = append(got, *r) }, &got
}

func TestAggregatorShowsTheFirstAtOnceAndTheRestAtTheEnd(t *testing.T) {
	a := NewAggregator(AggregatorConfig{})
	emit, got := collect()
	for i := range 10 {
		r := denied(nil, "100.112.0.7:40000", "10.0.1.9:22")
		r.First, r.Last = clock.Mono(100+i), clock.Mono(100+i)
		if !a.Add(&r, emit) {
			t.Fatal("no room for the same key again")
		}
		if len(*got) != 1 {
			t.Fatalf("%d lines after packet %d, want 1: the first, at once", len(*got), i)
		}
	}
	a.End(emit)
	if len(*got) != 2 || (*got)[0].Packets != 1 || (*got)[1].Packets != 9 || (*got)[1].Bytes != 540 {
		t.Fatalf("lines %+v, want 1 packet at once and 9 at the end", *got)
	}
	if r := (*got)[1]; r.First != 101 || r.Last != 109 {
		t.Errorf("the rest is from %d to %d, want 101 to 109", r.First, r.Last)
	}
	a.End(emit)
	if len(*got) != 2 {
		t.Error("the next interval told the same again")
	}
}

func TestAggregatorHoldRefusals(t *testing.T) {
	a := NewAggregator(AggregatorConfig{HoldRefusals: true})
	emit, got := collect()
	for range 3 {
		r := denied(nil, "100.112.0.7:40000", "10.0.1.9:22")
		a.Add(&r, emit)
	}
	if len(*got) != 0 {
		t.Fatal("a held refusal came out early")
	}
	a.End(emit)
	if len(*got) != 1 || (*got)[0].Packets != 3 {
		t.Fatalf("%+v, want one line of 3 packets", *got)
	}
}

func TestAggregatorKeys(t *testing.T) {
	base := denied(nil, "100.112.0.7:40000", "10.0.1.9:22")
	e := NewEndpoint(eni)
	vary := []func(*Record){
		func(r *Record) {},
		func(r *Record) { r.Endpoint = e },
		func(r *Record) { r.Inner = ap("100.112.0.7:40001") },
		func(r *Record) { r.Remote = ap("10.0.1.9:23") },
		func(r *Record) { r.Proto = packet.ProtoUDP },
		func(r *Record) { r.Direction = Ingress },
		func(r *Record) { r.Reason = packet.TableFull },
		func(r *Record) { r.Outside = ap("10.0.1.50:7") },
		func(r *Record) { r.ICMPType = 3 },
		func(r *Record) { r.ICMPCode = 3 },
	}
	a := NewAggregator(AggregatorConfig{HoldRefusals: true})
	emit, got := collect()
	for range 2 {
		for _, f := range vary {
			r := base
			f(&r)
			a.Add(&r, emit)
		}
	}
	a.End(emit)
	if len(*got) != len(vary) {
		t.Fatalf("%d lines for %d different refusals", len(*got), len(vary))
	}
	for i, r := range *got {
		if r.Packets != 2 {
			t.Errorf("refusal %d: %d packets, want 2", i, r.Packets)
		}
	}
}

func TestTCPFlags(t *testing.T) {
	emit, got := collect()
	a := NewAggregator(AggregatorConfig{})
	a.AddFlow(&FlowSample{
		OutPackets: 5, OutFlags: packet.SYN | packet.ACK | packet.PSH | packet.FIN,
		InPackets: 5, InFlags: packet.SYN | packet.ACK | packet.FIN,
	}, emit)
	a.AddFlow(&FlowSample{OutPackets: 1, OutFlags: packet.ACK | packet.PSH, InPackets: 1, InFlags: packet.ACK | packet.RST}, emit)
	for i, flags := range []uint8{packet.SYN | packet.ACK, packet.ACK, packet.SYN, packet.FIN | packet.ACK} {
		r := denied(nil, "100.112.0.7:40000", fmt.Sprintf("10.0.1.9:%d", i))
		r.TCPFlags = flags
		a.Add(&r, emit)
	}
	var flags []uint8
	for _, r := range *got {
		flags = append(flags, r.TCPFlags)
	}
	if want := []uint8{3, 19, 0, 4, 18, 0, 2, 1}; !reflect.DeepEqual(flags, want) {
		t.Errorf("tcp-flags %v, want %v", flags, want)
	}
}

func TestAggregatorIsBoundedAndFair(t *testing.T) {
	a := NewAggregator(AggregatorConfig{MaxKeys: 100, MaxKeysPerSource: 60})
	emit, got := collect()
	lost := 0
	for port := range 1000 {
		r := denied(nil, "100.112.0.66:40000", fmt.Sprintf("10.0.1.9:%d", port))
		if !a.Add(&r, emit) {
			lost++
		}
	}
	if lost != 940 {
		t.Errorf("a scanning task lost %d records, want 940", lost)
	}
	for i := range 40 {
		r := denied(nil, fmt.Sprintf("100.112.1.%d:40000", i), "10.0.1.9:22")
		if !a.Add(&r, emit) {
			t.Fatal("the scan hides what others were refused")
		}
	}
	r := denied(nil, "100.112.2.1:40000", "10.0.1.9:22")
	if a.Add(&r, emit) || a.Keys() != 100 {
		t.Errorf("%d keys, want 100 at most", a.Keys())
	}
	again := denied(nil, "100.112.0.66:40000", "10.0.1.9:0")
	if !a.Add(&again, emit) {
		t.Error("a key that is held has no room")
	}
	a.End(emit)
	if len(*got) != 101 {
		t.Errorf("%d lines", len(*got))
	}
	if !a.Add(&r, emit) {
		t.Error("the next interval has no room")
	}
}

// TestK10_SumsAreEqual sends random flows, sampled at random intervals with
// idle ones between them, and random refusals through an aggregator: per
// 5-tuple the lines add up to the packets, and nothing is told twice.
func TestK10_SumsAreEqual(t *testing.T) {
	type tuple struct {
		inner, remote netip.AddrPort
		dir           Direction
		action        Action
	}
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		want, got := map[tuple]sums{}, map[tuple]sums{}
		a := NewAggregator(AggregatorConfig{MaxKeys: 20, HoldRefusals: seed%2 == 0})
		now := clock.Mono(time.Hour)
		ends := map[tuple]clock.Mono{}
		emit := func(r *Record) {
			k := tuple{r.Inner, r.Remote, r.Direction, r.Action}
			s := got[k]
			got[k] = sums{s.packets + r.Packets, s.bytes + r.Bytes}
			if r.Packets == 0 {
				t.Fatalf("seed %d: a line without packets", seed)
			}
			if r.Last < r.First || r.First < ends[k] {
				t.Fatalf("seed %d: line from %d to %d, the one before ended at %d", seed, r.First, r.Last, ends[k])
			}
			ends[k] = r.Last
		}
		add := func(k tuple, packets, bytes uint64) {
			s := want[k]
			want[k] = sums{s.packets + packets, s.bytes + bytes}
		}
		// The flows' counters as a table keeps them, and what was sampled.
		type flow struct {
			s       FlowSample
			sampled clock.Mono
		}
		flows := make([]flow, 10)
		for i := range flows {
			flows[i] = flow{FlowSample{Inner: netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 112, 0, byte(i)}), 4000), Remote: ap("10.0.1.9:443")}, now}
		}
		for range 20 {
			for range rnd.IntN(200) {
				now += clock.Mono(1 + rnd.IntN(1000000))
				f := &flows[rnd.IntN(len(flows))]
				n, b := uint64(1+rnd.IntN(45)), uint64(rnd.IntN(65536))
				switch rnd.IntN(3) {
				case 0:
					f.s.OutPackets, f.s.OutBytes = f.s.OutPackets+n, f.s.OutBytes+b
					add(tuple{f.s.Inner, f.s.Remote, Egress, Accept}, n, b)
				case 1:
					f.s.InPackets, f.s.InBytes = f.s.InPackets+n, f.s.InBytes+b
					add(tuple{f.s.Inner, f.s.Remote, Ingress, Accept}, n, b)
				default:
					r := denied(nil, fmt.Sprintf("100.112.0.%d:5000", rnd.IntN(4)), fmt.Sprintf("10.0.1.9:%d", rnd.IntN(9)))
					r.First, r.Last, r.Packets, r.Bytes = now, now, n, b
					k := tuple{r.Inner, r.Remote, Egress, Reject}
					add(k, n, b)
					if !a.Add(&r, emit) { // what a Logger tells by SKIPDATA
						s := got[k]
						got[k] = sums{s.packets + n, s.bytes + b}
					}
					continue
				}
				f.s.Last = now
			}
			for i := range flows {
				f := &flows[i]
				if f.s.First = f.sampled; f.s.Last < f.s.First {
					f.s.Last = f.s.First
				}
				a.AddFlow(&f.s, emit)
				f.s = FlowSample{Inner: f.s.Inner, Remote: f.s.Remote}
				f.sampled = now
			}
			a.End(emit)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: lines add up to %v, packets to %v", seed, got, want)
		}
	}
}

func TestAggregatorIsDeterministic(t *testing.T) {
	run := func() []Record {
		rnd := rand.New(rand.NewPCG(1, 1))
		a := NewAggregator(AggregatorConfig{MaxKeys: 50})
		emit, got := collect()
		for range 5 {
			for range 500 {
				r := denied(nil, fmt.Sprintf("100.112.0.%d:5000", rnd.IntN(20)), fmt.Sprintf("10.0.1.9:%d", rnd.IntN(9)))
				a.Add(&r, emit)
			}
			a.End(emit)
		}
		return *got
	}
	if !reflect.DeepEqual(run(), run()) {
		t.Error("the same records gave different lines")
	}
}

func TestK8_EndIsNeverBeforeStart(t *testing.T) {
	clk := clock.NewFake()
	first := clk.Mono()
	clk.Advance(10 * time.Second)
	last := clk.Mono()
	for _, step := range []time.Duration{0, time.Hour, -2 * time.Hour, 10 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
		clk.StepWall(step)
		l := &Line{Record: Record{First: first, Last: last}, Made: clk.Wall()}
		wallTimes(l, clk.Mono())
		if d := l.End.Sub(l.Start); d != 10*time.Second {
			t.Errorf("after a step of %v the flow lasted %v, want 10s", step, d)
		}
		if l.End.After(l.Made) {
			t.Errorf("after a step of %v the line ends %v after it was made", step, l.End.Sub(l.Made))
		}
	}
}
