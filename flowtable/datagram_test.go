package flowtable

import (
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

func TestU6_I2_DatagramTimers(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name        string
		proto       uint8
		port        uint16
		first, back time.Duration // idle time after the first packet, after an answer
		again       time.Duration // after one more outbound packet
	}{
		{"udp", protoUDP, 5000, 120 * s, 300 * s, 300 * s},
		{"dns", protoUDP, 53, 120 * s, 10 * s, 120 * s},
		{"icmp", protoICMP, 0, 60 * s, 60 * s, 60 * s},
		{"icmpv6", protoICMPv6, 0, 60 * s, 60 * s, 60 * s},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newTalk(t, Config{})
			k.f.Inner.Proto, k.f.Inner.DstPort = c.proto, c.port
			var why Reason
			if k.ref, why = k.tab.Insert(&k.f, &dgram, k.now); why != packet.OK {
				t.Fatal(why)
			}
			see := func(d Direction, want time.Duration) {
				t.Helper()
				k.now += Mono(s)
				if why := k.tab.Observe(k.ref, d, &dgram, k.now); why != packet.OK {
					t.Fatalf("%v: %v", d, why)
				}
				k.wantLeft(want)
			}
			k.want(OneWay)
			k.wantLeft(c.first)
			see(Outbound, c.first)
			k.want(OneWay)
			see(Inbound, c.back)
			k.want(TwoWay)
			see(Outbound, c.again)
			left := k.left()
			k.now += Mono(left) - 1
			if n := k.tab.Sweep(k.now, 1000); n != 0 {
				t.Error("swept before its time")
			}
			k.now++
			if why := k.tab.Observe(k.ref, Inbound, &dgram, k.now); why != packet.FlowExpired {
				t.Errorf("answer after expiry: %v, want flow-expired", why)
			}
			if why := k.tab.Observe(k.ref, Outbound, &dgram, k.now); why != packet.NoFlow {
				t.Errorf("question after expiry: %v, want no-flow", why)
			}
			if n := k.tab.Sweep(k.now, 1000); n != 1 || k.tab.Len() != 0 {
				t.Errorf("swept %d, %d left; want 1, 0", n, k.tab.Len())
			}
		})
	}
}

func TestU7_FilteredPacketsRefreshNothing(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.now += Mono(time.Minute)
	left := k.left()
	k.see(Inbound, ack, 501+70_000, 101, 100, packet.OutOfWindow)
	k.see(Inbound, syn, 1, 0, 0, packet.InvalidState)
	k.see(Inbound, rst, 600, 0, 0, packet.OK) // U8: nor does a RST that ends nothing
	if k.left() != left {
		t.Error("a refused packet refreshed the flow")
	}
	if c := k.tab.Entry(k.ref).Counters(); c.InPackets != 2 {
		t.Errorf("counted %d inbound packets, want the SYN-ACK and the RST", c.InPackets)
	}
}

func TestU9_OnlyTheExactRemoteAnswers(t *testing.T) {
	tab := openTable(t, Config{})
	f := flowOf(protoUDP, 1, 4000)
	ref, _ := tab.Insert(&f, &dgram, start)
	good := f.Reply()
	if r, d := tab.Lookup(&good); r != ref || d != Inbound {
		t.Fatalf("answer of the remote: %v %v", r, d)
	}
	if r, d := tab.Lookup(&f.Inner); r != ref || d != Outbound {
		t.Fatalf("packet of the task: %v %v", r, d)
	}
	for name, change := range map[string]func(*Tuple){
		"other port":          func(k *Tuple) { k.SrcPort++ },
		"other address":       func(k *Tuple) { k.Src[15]++ },
		"other protocol":      func(k *Tuple) { k.Proto = protoTCP },
		"other outside port":  func(k *Tuple) { k.DstPort++ },
		"other outside":       func(k *Tuple) { k.Dst[15]++ },
		"untranslated":        func(k *Tuple) { *k = f.Inner.Mirror() },
		"other address class": func(k *Tuple) { k.Src[0] = 1 },
	} {
		k := good
		change(&k)
		if r, d := tab.Lookup(&k); r != 0 || d != 0 {
			t.Errorf("%s: found %v %v, want nothing", name, r, d)
		}
	}
}

func TestInsertRefusals(t *testing.T) {
	tab := openTable(t, Config{MaxFlows: 4, MaxFlowsPerTask: 3})
	f := flowOf(protoUDP, 1, 1)
	ref, _ := tab.Insert(&f, &dgram, start)
	if r, why := tab.Insert(&f, &dgram, start); why != packet.FlowExists || r != ref {
		t.Errorf("same flow again: %v %v", r, why)
	}
	g := flowOf(protoUDP, 2, 1)
	if r, why := tab.Insert(&g, &dgram, start); why != packet.TupleTaken || r != 0 {
		t.Errorf("outside tuple of another flow: %v %v", r, why)
	}
	g.Inner.Proto = 132
	if _, why := tab.Insert(&g, &dgram, start); why != packet.UnsupportedProtocol {
		t.Errorf("SCTP: %v", why)
	}
	// A flow whose inner tuple is what comes back to another one.
	g = flowOf(protoUDP, 3, 9)
	g.Inner = f.Reply()
	if _, why := tab.Insert(&g, &dgram, start); why != packet.TupleTaken {
		t.Errorf("inner tuple equal to a reply tuple: %v", why)
	}
	g = Flow{Inner: Tuple{Src: addr("10.0.0.1"), Dst: addr("10.0.0.1"), SrcPort: 5, DstPort: 5, Proto: protoUDP}, Outside: addr("10.0.0.1"), OutsidePort: 5}
	if _, why := tab.Insert(&g, &dgram, start); why != packet.TupleTaken {
		t.Errorf("flow from itself to itself: %v", why)
	}
	for port := uint16(2); port <= 3; port++ {
		f = flowOf(protoUDP, 1, port)
		if _, why := tab.Insert(&f, &dgram, start); why != packet.OK {
			t.Fatal(why)
		}
	}
	f = flowOf(protoUDP, 1, 4)
	if _, why := tab.Insert(&f, &dgram, start); why != packet.TaskFlowLimit {
		t.Errorf("over the task's cap: %v", why)
	}
	f = flowOf(protoUDP, 2, 4)
	if _, why := tab.Insert(&f, &dgram, start); why != packet.OK {
		t.Errorf("another task below its cap: %v", why)
	}
	// Full: refused, everything there stays (T19), and the first free entry is used.
	f = flowOf(protoUDP, 2, 5)
	if _, why := tab.Insert(&f, &dgram, start); why != packet.TableFull {
		t.Errorf("full table: %v", why)
	}
	if n := tab.Len(); n != 4 {
		t.Errorf("%d flows, want 4", n)
	}
	tab.Remove(ref)
	if _, why := tab.Insert(&f, &dgram, start); why != packet.OK {
		t.Errorf("after one left: %v", why)
	}
	// Full of expired flows: they make room without a sweep by the caller.
	f = flowOf(protoUDP, 4, 6)
	if _, why := tab.Insert(&f, &dgram, start+Mono(time.Hour)); why != packet.OK {
		t.Errorf("table full of expired flows: %v", why)
	}
	if tab.Remove(ref) || tab.Remove(0) || tab.Remove(Ref(1)<<62) {
		t.Error("removed what is not there")
	}
	if why := tab.Observe(ref, Outbound, &dgram, start); why != packet.NoFlow {
		t.Errorf("stale ref: %v", why)
	}
}

func TestT18_HalfOpenCapEvictsOnlyTheSameTask(t *testing.T) {
	tab := openTable(t, Config{MaxHalfOpenPerTask: 4})
	k := &talk{t: t, tab: tab, now: start, wild: 1000}
	insert := func(task uint32, port uint16) Ref {
		t.Helper()
		f := flowOf(protoTCP, task, port)
		k.now++
		r, why := tab.Insert(&f, k.seg(syn, 100, 0, 0), k.now)
		if why != packet.OK {
			t.Fatal(why)
		}
		return r
	}
	quiet := insert(2, 9000)
	open := insert(1, 1)
	k.ref = open
	k.in(syn|ack, 500, 101, 0)
	k.out(ack, 101, 501, 0)
	var refs []Ref
	for port := range uint16(100) {
		refs = append(refs, insert(1, 10+port))
	}
	for i, r := range refs {
		if there, want := tab.Entry(r) != nil, i >= 96; there != want {
			t.Errorf("half-open flow %d of 100 there: %v, want %v", i, there, want)
		}
	}
	if tab.Entry(quiet) == nil {
		t.Error("the other task's half-open flow was evicted")
	}
	if tab.Entry(open) == nil {
		t.Error("an established flow was evicted (T19)")
	}
	if all, half := tab.TaskFlows(1); all != 5 || half != 4 {
		t.Errorf("task 1 has %d flows, %d half-open; want 5, 4", all, half)
	}
	if s := tab.Stats(); s.Evicted != 96 || s.HalfOpen != 5 || s.Tasks != 2 {
		t.Errorf("%+v", s)
	}
}

func TestT18_HalfOpenCapInTotal(t *testing.T) {
	tab := openTable(t, Config{MaxHalfOpen: 2})
	k := &talk{t: t, tab: tab, now: start}
	for task := uint32(1); task <= 2; task++ {
		f := flowOf(protoTCP, task, uint16(task))
		if _, why := tab.Insert(&f, k.seg(syn, 1, 0, 0), k.now); why != packet.OK {
			t.Fatal(why)
		}
	}
	f := flowOf(protoTCP, 3, 3)
	if _, why := tab.Insert(&f, k.seg(syn, 1, 0, 0), k.now); why != packet.TableFull {
		t.Errorf("third task over the total: %v", why)
	}
	f = flowOf(protoTCP, 1, 4)
	if _, why := tab.Insert(&f, k.seg(syn, 1, 0, 0), k.now); why != packet.OK {
		t.Errorf("task with a half-open flow of its own: %v", why)
	}
	if n := tab.Len(); n != 2 {
		t.Errorf("%d flows, want 2", n)
	}
}

func TestOnRemoveSeesTheFlow(t *testing.T) {
	var got []Flow
	var tab *Table
	tab = openTable(t, Config{OnRemove: func(e *Entry) {
		got = append(got, e.Flow())
		if e.Counters().OutPackets != 1 || e.State() != OneWay {
			t.Errorf("OnRemove sees %+v in state %v", e.Counters(), e.State())
		}
		k := e.Inner()
		if r, _ := tab.Lookup(&k); r != 0 {
			t.Error("the flow can still be found")
		}
	}})
	f := flowOf(protoUDP, 1, 1)
	r, _ := tab.Insert(&f, &dgram, start)
	tab.SetPolicy(r, 70, 80)
	f.Rule, f.Policy = 70, 80
	var l Flow
	if !tab.Load(r, &l) || l != f {
		t.Errorf("loaded %+v, want %+v", l, f)
	}
	tab.Remove(r)
	if len(got) != 1 || got[0] != f {
		t.Errorf("OnRemove got %+v, want %+v", got, f)
	}
	if tab.Load(r, &l) || tab.SetPolicy(r, 1, 1) {
		t.Error("a removed flow can be loaded or changed")
	}
}

func TestSweepHasABudgetAndReachesAll(t *testing.T) {
	tab := openTable(t, Config{MaxFlows: 1000, MaxFlowsPerTask: 1000})
	for port := range uint16(1000) {
		f := flowOf(protoUDP, 1, port)
		if _, why := tab.Insert(&f, &dgram, start); why != packet.OK {
			t.Fatal(why)
		}
	}
	late := start + Mono(121*time.Second)
	for left := 1000; left > 0; left -= 100 {
		if n := tab.Sweep(late, 100); n != 100 {
			t.Fatalf("with %d left: swept %d, want 100", left, n)
		}
	}
	if tab.Len() != 0 || tab.Sweep(late, 100) != 0 {
		t.Error("flows left")
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, c := range []Config{
		{MaxFlows: -1}, {MaxFlows: 1 << 31}, {MaxFlowsPerTask: -1}, {MaxHalfOpen: -1}, {MaxHalfOpenPerTask: -1}, {Mode: 9},
		{Timeouts: Timeouts{Established: 59 * time.Second}},
		{Timeouts: Timeouts{Established: 432001 * time.Second}},
		{Timeouts: Timeouts{UDP: 119 * time.Second}},
		{Timeouts: Timeouts{ICMP: 59 * time.Second}},
	} {
		if tab, err := Open(c, start); err == nil {
			tab.Close()
			t.Errorf("accepted %+v", c)
		}
	}
}
