package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

var (
	out4    = netip.MustParseAddr("10.0.1.50")
	out6    = netip.MustParseAddr("fd00:1::50")
	task4   = netip.MustParseAddr("100.112.0.7")
	task6   = netip.MustParseAddr("fd5b:1111::7")
	server4 = netip.MustParseAddr("10.0.1.20")
	server6 = netip.MustParseAddr("fd00:1::20")
	router4 = netip.MustParseAddr("10.0.9.1")
	router6 = netip.MustParseAddr("fd00:9::1")

	start = clock.Mono(time.Hour)
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// family is one IP version with the addresses of everyone in it.
type family struct {
	name                        string
	task, server, router, outer netip.Addr
	proto                       uint8 // of echo
}

var families = []family{
	{"v4", task4, server4, router4, out4, protoICMP},
	{"v6", task6, server6, router6, out6, protoICMPv6},
}

// parse parses a copy of data, which must be acceptable.
func parse(t testing.TB, data []byte) *packet.Parsed {
	t.Helper()
	return parsePacket(t, packet.Packet{Data: append([]byte(nil), data...)})
}

func parsePacket(t testing.TB, pk packet.Packet) *packet.Parsed {
	t.Helper()
	p := new(packet.Parsed)
	if r := p.Parse(&pk); r != packet.OK {
		t.Fatalf("test packet refused: %v", r)
	}
	return p
}

// world is a table and a mapper over it.
type world struct {
	t  testing.TB
	ft *flowtable.Table
	m  *Mapper
}

func newWorld(t testing.TB, tc flowtable.Config, c Config) *world {
	t.Helper()
	w := &world{t: t}
	tc.OnRemove = func(e *flowtable.Entry) { w.m.Released(e) }
	ft, err := flowtable.Open(tc, start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ft.Close(); err != nil {
			t.Error(err)
		}
	})
	w.ft = ft
	c.Table = ft
	if c.Secret == [32]byte{} {
		c.Secret = [32]byte{1, 2, 3, 31: 9}
	}
	if !c.V4.IsValid() && !c.V6.IsValid() {
		c.V4, c.V6 = out4, out6
	}
	if w.m, err = New(c); err != nil {
		t.Fatal(err)
	}
	return w
}

// admit admits the flow that data starts.
func (w *world) admit(data []byte, task uint32) (flowtable.Ref, packet.Reason) {
	w.t.Helper()
	p := parse(w.t, data)
	var s flowtable.Segment
	flowtable.SegmentOf(p, &s)
	return w.m.Admit(p, &s, Meta{Task: task}, start)
}

// mustAdmit is admit for a flow that has to be let in. It returns its port.
func (w *world) mustAdmit(data []byte, task uint32) (flowtable.Ref, uint16) {
	w.t.Helper()
	ref, r := w.admit(data, task)
	if r != packet.OK {
		w.t.Fatalf("new flow refused: %v", r)
	}
	_, port := w.ft.Entry(ref).Outside()
	return ref, port
}

// udpFlow is a first packet of a UDP flow.
func udpFlow(t testing.TB, f family) *packet.Parsed {
	return parse(t, pkt.UDP(at(f.task, 5000), at(f.server, 53), []byte("x")))
}

// scaled is n, or less under the race detector, which makes loops of one
// goroutine twenty times slower and finds nothing in them.
func scaled(n int) int {
	if raceEnabled {
		return n / 8
	}
	return n
}

// step is how far apart the lengths are that are tried out of many.
func step() int {
	if raceEnabled {
		return 7
	}
	return 1
}

// innerAddr is the address of task i.
func innerAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 112 + byte(i>>16), byte(i >> 8), byte(i)})
}
