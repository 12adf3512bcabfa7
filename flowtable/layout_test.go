package flowtable

import (
	"testing"
	"unsafe"

	"github.com/fe919326/spillway/internal/packet"
)

func TestEntryLayout(t *testing.T) {
	var e Entry
	if n := unsafe.Sizeof(e.hot); n != 128 {
		t.Errorf("hot part is %d bytes, want 128", n)
	}
	if n := unsafe.Sizeof(e.cold); n != 64 {
		t.Errorf("cold part is %d bytes, want 64", n)
	}
	if n := unsafe.Offsetof(e.win); n != 64 {
		t.Errorf("tracking starts at %d, want 64: Lookup must touch one cache line", n)
	}
	if n := unsafe.Sizeof(bucket{}); n != 64 {
		t.Errorf("bucket is %d bytes, want one cache line", n)
	}
	if n := unsafe.Sizeof(stripe{}); n != 64 {
		t.Errorf("stripe is %d bytes, want one cache line", n)
	}
	if n := unsafe.Sizeof(taskShard{}); n != 64 {
		t.Errorf("task shard is %d bytes, want one cache line", n)
	}
	if n := unsafe.Sizeof(Tuple{}); n != 40 {
		t.Errorf("tuple is %d bytes, want 40", n)
	}
}

func TestBytesPerFlow(t *testing.T) {
	const flows = 1 << 20
	if per := float64(sizeFor(flows)) / flows; per > 216 {
		t.Errorf("%.1f bytes per flow, want at most 216", per)
	}
}

func TestNoAllocs(t *testing.T) {
	tab := openTable(t, Config{MaxFlows: 4096})
	k := &talk{t: t, tab: tab, f: flowOf(protoTCP, 1, 1000), now: start, wild: 60000}
	k.established()
	f1, u := flowOf(protoUDP, 9, 9), flowOf(protoUDP, 1, 2)
	uref, _ := tab.Insert(&u, &dgram, start)
	s := k.seg(ack, 101, 501, 100)
	synSeg := k.seg(syn, 1, 0, 0)
	reply := u.Reply()
	var found [3]Found
	keys := [3]Tuple{reply, u.Inner, f1.Inner}
	var p packet.Parsed
	p.Data, p.Proto, p.Payload = make([]byte, 100), protoUDP, 28
	// Warm up what grows once.
	for port := range uint16(2000) {
		f := flowOf(protoTCP, 3, port)
		if r, why := tab.Insert(&f, synSeg, start); why == packet.OK && port%2 == 0 {
			tab.Remove(r)
		}
	}
	port := uint16(0)
	for name, f := range map[string]func(){
		"Lookup":         func() { tab.Lookup(&reply) },
		"LookupBatch":    func() { tab.LookupBatch(keys[:], found[:]) },
		"Observe TCP":    func() { tab.Observe(k.ref, Outbound, s, start) },
		"Observe UDP":    func() { tab.Observe(uref, Inbound, &dgram, start) },
		"Entry, Load":    func() { var f Flow; tab.Load(uref, &f); tab.Entry(uref).Counters() },
		"SegmentOf":      func() { var s Segment; SegmentOf(&p, &s) },
		"Sweep":          func() { tab.Sweep(start, 100) },
		"refused Insert": func() { tab.Insert(&u, &dgram, start) },
		"Insert, Remove": func() {
			port++
			f := flowOf(protoUDP, 2, port)
			r, _ := tab.Insert(&f, &dgram, start)
			tab.Remove(r)
		},
		"Insert, Remove half-open": func() {
			port++
			f := flowOf(protoTCP, 4, port)
			r, _ := tab.Insert(&f, synSeg, start)
			tab.Remove(r)
		},
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func TestSegmentOf(t *testing.T) {
	tcp := make([]byte, 20+32+1000)
	opts := tcp[40:52]
	copy(opts, []byte{2, 4, 5, 0xb4, 1, 3, 3, 9, 1, 1, 4, 2})
	p := packet.Parsed{Data: tcp, Proto: protoTCP, Transport: true, L4: 20, Payload: 52, Flags: syn, Seq: 5, Ack: 6, Window: 7}
	var s Segment
	SegmentOf(&p, &s)
	if want := (Segment{Flags: syn, Seq: 5, Ack: 6, Window: 7, Scale: 9, HasScale: true, MSS: 1460, Len: 1000, Wire: 1, Bytes: 1052}); s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	p.Flags = ack
	p.GSO = packet.GSO{Type: packet.GSOTCP4, Size: 300, HdrLen: 52}
	SegmentOf(&p, &s)
	if want := (Segment{Flags: ack, Seq: 5, Ack: 6, Window: 7, Len: 1000, Wire: 4, Bytes: 1052 + 3*52}); s != want {
		t.Errorf("super-packet: got %+v, want %+v", s, want)
	}
	p.Flags, p.GSO = syn, packet.GSO{}
	for _, bad := range [][]byte{{3, 0}, {3, 1}, {3, 9}, {3}, {2, 2, 3, 3}, {0, 3, 3, 9}, {3, 3, 200}} {
		clear(opts)
		copy(opts[len(opts)-len(bad):], bad)
		for i := range opts[:len(opts)-len(bad)] {
			opts[i] = 1
		}
		SegmentOf(&p, &s)
		if s.HasScale && s.Scale > 14 {
			t.Errorf("options %v: scale %d", bad, s.Scale)
		}
	}
	if s.Scale != 14 || !s.HasScale {
		t.Errorf("scale 200 became %d, want 14 (RFC 7323 section 2.3)", s.Scale)
	}
}
