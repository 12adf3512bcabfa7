package flowtable

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

const (
	fin = packet.FIN
	syn = packet.SYN
	rst = packet.RST
	ack = packet.ACK
)

func addr(s string) Addr { return netip.MustParseAddr(s).As16() }

// flowOf is a flow of the task with that number, told apart by port, to
// 10.0.0.9:443 (or :53 for UDP if dns).
func flowOf(proto uint8, task uint32, port uint16) Flow {
	f := Flow{Task: task, Rule: 7, Policy: 3, Outside: addr("10.0.1.50"), OutsidePort: 20000 + port}
	src := addr("100.112.0.0")
	src[14], src[15] = byte(task>>8), byte(task)
	f.Inner = Tuple{Src: src, Dst: addr("10.0.0.9"), SrcPort: port, DstPort: 443, Proto: proto}
	return f
}

func openTable(t testing.TB, cfg Config) *Table {
	t.Helper()
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 256
	}
	tab, err := Open(cfg, start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tab.Close() })
	return tab
}

const start = clock.Mono(time.Hour)

// dgram is one UDP or ICMP packet.
var dgram = Segment{Wire: 1, Bytes: 100}

// talk drives one flow by hand.
type talk struct {
	t    *testing.T
	tab  *Table
	f    Flow
	ref  Ref
	now  Mono
	wild uint16 // window of every segment
}

func newTalk(t *testing.T, cfg Config) *talk {
	return &talk{t: t, tab: openTable(t, cfg), f: flowOf(protoTCP, 1, 1000), now: start, wild: 60000}
}

func (k *talk) seg(flags uint8, seq, ackn, n uint32) *Segment {
	return &Segment{Flags: flags, Seq: seq, Ack: ackn, Window: k.wild, Len: n, Wire: 1, Bytes: 40 + n}
}

// open inserts the flow with a SYN of that number.
func (k *talk) open(seq uint32) {
	k.t.Helper()
	r, why := k.tab.Insert(&k.f, k.seg(syn, seq, 0, 0), k.now)
	if why != packet.OK {
		k.t.Fatalf("first SYN refused: %v", why)
	}
	k.ref = r
}

func (k *talk) see(d Direction, flags uint8, seq, ackn, n uint32, want Reason) {
	k.t.Helper()
	if got := k.tab.Observe(k.ref, d, k.seg(flags, seq, ackn, n), k.now); got != want {
		k.t.Fatalf("%v flags %#x seq %d ack %d len %d: got %v, want %v (state %v)", d, flags, seq, ackn, n, got, want, k.state())
	}
}

func (k *talk) out(flags uint8, seq, ackn, n uint32) {
	k.t.Helper()
	k.see(Outbound, flags, seq, ackn, n, packet.OK)
}
func (k *talk) in(flags uint8, seq, ackn, n uint32) {
	k.t.Helper()
	k.see(Inbound, flags, seq, ackn, n, packet.OK)
}

func (k *talk) state() State {
	if e := k.tab.Entry(k.ref); e != nil {
		return e.State()
	}
	return NoState
}

func (k *talk) want(s State) {
	k.t.Helper()
	if got := k.state(); got != s {
		k.t.Fatalf("state is %v, want %v", got, s)
	}
}

// left is the time until the flow ends.
func (k *talk) left() time.Duration { return k.tab.Entry(k.ref).Expires().Sub(k.now) }

func (k *talk) wantLeft(d time.Duration) {
	k.t.Helper()
	if got := k.left(); got < d || got > d+2*tick {
		k.t.Fatalf("flow ends in %v, want %v", got, d)
	}
}

// established opens the flow: client at 101, server at 501.
func (k *talk) established() {
	k.t.Helper()
	k.open(100)
	k.in(syn|ack, 500, 101, 0)
	k.want(SynReceived)
	k.out(ack, 101, 501, 0)
	k.want(Established)
}
