package flowtable

import (
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

func TestT1_CloseByEitherSide(t *testing.T) {
	t.Run("client first", func(t *testing.T) {
		k := newTalk(t, Config{})
		k.established()
		k.out(fin|ack, 101, 501, 0)
		k.want(FinClient)
		k.wantLeft(240 * time.Second)
		k.in(ack, 501, 102, 0)
		k.in(fin|ack, 501, 102, 0)
		k.want(FinBoth)
		k.out(ack, 102, 502, 0)
		k.want(TimeWait)
		k.wantLeft(2 * time.Second)
		if got := k.tab.Entry(k.ref).Closer(); got != Outbound {
			t.Errorf("closer is %v, want outbound", got)
		}
	})
	t.Run("server first", func(t *testing.T) {
		k := newTalk(t, Config{})
		k.established()
		k.in(fin|ack, 501, 101, 0)
		k.want(FinServer)
		k.out(fin|ack, 101, 502, 0)
		k.want(FinBoth)
		k.in(ack, 502, 102, 0)
		k.want(TimeWait)
		k.wantLeft(60 * time.Second)
		if got := k.tab.Entry(k.ref).Closer(); got != Inbound {
			t.Errorf("closer is %v, want inbound", got)
		}
	})
	t.Run("both at once", func(t *testing.T) {
		k := newTalk(t, Config{})
		k.established()
		k.out(fin|ack, 101, 501, 0)
		k.in(fin|ack, 501, 101, 0)
		k.out(ack, 102, 502, 0)
		k.want(FinBoth)
		k.in(ack, 502, 102, 0)
		k.want(TimeWait)
		k.now += Mono(time.Second)
		k.in(fin|ack, 501, 102, 0) // the last ACK was lost
		k.wantLeft(2 * time.Second)
	})
}

func TestT1_HalfClosedFlowLivesForHoursWithTraffic(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(fin|ack, 101, 501, 0)
	seq := uint32(501)
	for range 100 {
		k.now += Mono(200 * time.Second)
		k.in(ack, seq, 102, 1000)
		seq += 1000
		k.out(ack, 102, seq, 0)
		if n := k.tab.Sweep(k.now, 1000); n != 0 {
			t.Fatalf("half-closed flow with traffic was swept after %v", k.now.Sub(start))
		}
	}
	k.want(FinClient)
	k.now += Mono(241 * time.Second)
	if n := k.tab.Sweep(k.now, 1000); n != 1 {
		t.Errorf("silent half-closed flow not swept: %d", n)
	}
}

func TestT2_SimultaneousOpen(t *testing.T) {
	k := newTalk(t, Config{})
	k.open(100)
	k.in(syn, 500, 0, 0)
	k.want(SynCross)
	k.out(syn|ack, 100, 501, 0)
	k.want(SynCross)
	k.in(syn|ack, 500, 101, 0)
	k.want(Established)
	k.out(ack, 101, 501, 100)
	k.in(ack, 501, 201, 100)
	k.want(Established)
}

func TestT3_SynWithOtherNumberRestartsTracking(t *testing.T) {
	k := newTalk(t, Config{})
	k.open(100)
	k.out(syn, 900_000_000, 0, 0)
	k.want(SynSent)
	k.see(Inbound, syn|ack, 500, 101, 0, packet.OutOfWindow) // answers the first SYN
	k.in(syn|ack, 500, 900_000_001, 0)
	k.in(syn|ack, 500, 900_000_001, 0) // once more
	k.out(ack, 900_000_001, 501, 0)
	k.want(Established)
	k.in(syn|ack, 500, 900_000_001, 0) // late duplicate
	k.want(Established)
}

func TestT3_DataOnSyn(t *testing.T) {
	for _, acked := range []uint32{101, 601} { // refused and taken (RFC 7413)
		k := newTalk(t, Config{})
		if r, why := k.tab.Insert(&k.f, k.seg(syn, 100, 0, 500), k.now); why != packet.OK {
			t.Fatal(why)
		} else {
			k.ref = r
		}
		k.in(syn|ack, 500, acked, 300)
		k.out(ack, acked, 801, 0)
		k.want(Established)
	}
}

func TestT4_OnlySynStartsAFlow(t *testing.T) {
	for _, flags := range []uint8{ack, syn | ack, rst, fin, fin | ack, rst | ack, syn | rst, syn | fin, 0} {
		tab := openTable(t, Config{})
		f := flowOf(protoTCP, 1, 1)
		if r, why := tab.Insert(&f, &Segment{Flags: flags}, start); why != packet.NoFlow || r != 0 || tab.Len() != 0 {
			t.Errorf("flags %#x: got %v, %d flows; want no-flow and none", flags, why, tab.Len())
		}
	}
}

func TestT4_LoosePickupUntilDeclaredTime(t *testing.T) {
	k := newTalk(t, Config{LoosePickup: start + Mono(time.Minute)})
	r, why := k.tab.Insert(&k.f, k.seg(ack, 5000, 9000, 100), k.now)
	if why != packet.OK {
		t.Fatalf("segment from mid-stream refused: %v", why)
	}
	k.ref = r
	k.want(Established)
	if !k.tab.Entry(r).Picked() {
		t.Error("not marked as picked up")
	}
	k.in(ack, 9000, 5100, 1400)
	k.in(ack, 9000+3<<20, 5100, 1400) // the scale is not known: nothing may be dropped
	k.out(ack, 5100, 9000+3<<20+1400, 0)
	// A RST still needs the number.
	k.in(rst, 77, 0, 0)
	k.want(Established)
	k.in(rst, 9000+3<<20+1400, 0, 0)
	k.want(Reset)

	for _, flags := range []uint8{rst, rst | ack, syn | ack} {
		f := flowOf(protoTCP, 1, 7)
		if _, why := k.tab.Insert(&f, k.seg(flags, 1, 1, 0), k.now); why != packet.NoFlow {
			t.Errorf("pickup with flags %#x: got %v, want no-flow", flags, why)
		}
	}
	f := flowOf(protoTCP, 1, 8)
	if _, why := k.tab.Insert(&f, k.seg(ack, 1, 1, 0), start+Mono(time.Minute)); why != packet.NoFlow {
		t.Errorf("pickup after the declared time: got %v, want no-flow", why)
	}
}

func TestT5_ImpossibleFlagsChangeNothing(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	for _, flags := range []uint8{0, packet.PSH, syn | fin, syn | rst, fin | rst | ack, fin} {
		k.see(Outbound, flags, 101, 501, 0, packet.InvalidState)
		k.see(Inbound, flags, 501, 101, 0, packet.InvalidState)
	}
	k.want(Established)
}

func TestT6_InboundSynIsRefused(t *testing.T) {
	k := newTalk(t, Config{})
	k.open(100)
	k.in(syn|ack, 500, 101, 0)
	k.see(Inbound, syn, 7000, 0, 0, packet.InvalidState)
	k.out(ack, 101, 501, 0)
	for range 2 {
		k.see(Inbound, syn, 7000, 0, 0, packet.InvalidState)
	}
	k.want(Established)
	k.in(rst, 501, 0, 0)
	k.see(Inbound, syn, 7000, 0, 0, packet.InvalidState)
	k.want(Reset)
}

func TestT7_T8_Timers(t *testing.T) {
	k := newTalk(t, Config{Timeouts: Timeouts{HalfOpen: 30 * time.Second}})
	k.open(100)
	k.wantLeft(30 * time.Second)
	k.in(syn|ack, 500, 101, 0)
	k.wantLeft(30 * time.Second)
	k.out(ack, 101, 501, 0)
	k.wantLeft(7440 * time.Second)
	k.now += Mono(7440*time.Second) - 1
	k.out(ack, 101, 501, 0)
	k.wantLeft(7440 * time.Second)
	k.out(fin|ack, 101, 501, 0)
	k.wantLeft(240 * time.Second)
}

func TestT9_ExpiredFlowSaysSo(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.now += Mono(7441 * time.Second)
	k.see(Outbound, ack, 101, 501, 10, packet.FlowExpired)
	k.see(Inbound, ack, 501, 101, 10, packet.FlowExpired)
	k.see(Outbound, syn, 9999, 0, 0, packet.NoFlow) // may start the next flow
	old := k.ref
	k.open(9999)
	if k.tab.Entry(old) != nil || k.tab.Len() != 1 {
		t.Errorf("expired flow still there beside the new one: %d flows", k.tab.Len())
	}
}

func TestT10_ResetNeedsExactSequence(t *testing.T) {
	for _, d := range []Direction{Outbound, Inbound} {
		seq, peer := uint32(101), uint32(501)
		if d == Inbound {
			seq, peer = peer, seq
		}
		t.Run(d.String(), func(t *testing.T) {
			k := newTalk(t, Config{})
			k.established()
			k.see(d, rst, seq+1, 0, 0, packet.OK) // in the window: forwarded
			k.see(d, rst|ack, seq+50_000, peer, 0, packet.OK)
			k.want(Established)
			k.see(d, rst, seq-1, 0, 0, packet.OutOfWindow)
			k.see(d, rst, seq+70_000, 0, 0, packet.OutOfWindow)
			k.see(d, rst, seq+1<<31, 0, 0, packet.OutOfWindow)
			k.want(Established)
			k.wantLeft(7440 * time.Second)
			k.see(d, rst, seq, 0, 0, packet.OK)
			k.want(Reset)
			k.wantLeft(60 * time.Second)
		})
	}
}

func TestT10_ResetAtAcknowledgedOrSentEnd(t *testing.T) {
	for _, seq := range []uint32{501, 2501} { // what the client acknowledged; what the server sent
		k := newTalk(t, Config{})
		k.established()
		k.in(ack, 501, 101, 2000)
		k.in(rst, seq, 0, 0)
		k.want(Reset)
	}
	k := newTalk(t, Config{})
	k.established()
	k.in(ack, 501, 101, 2000)
	k.in(rst, 1501, 0, 0)
	k.want(Established)
}

func TestT10_ResetInWindowAfterFin(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(fin|ack, 101, 501, 0)
	k.in(rst, 600, 0, 0)
	k.want(Reset)
}

func TestT10_RefusedConnection(t *testing.T) {
	k := newTalk(t, Config{})
	k.open(100)
	k.see(Inbound, rst, 0, 0, 0, packet.OutOfWindow) // without ACK
	k.see(Inbound, rst|ack, 0, 100, 0, packet.OutOfWindow)
	k.see(Inbound, rst|ack, 0, 102, 0, packet.OutOfWindow)
	k.want(SynSent)
	k.in(rst|ack, 0, 101, 0)
	k.want(Reset)
	k.see(Outbound, syn, 50, 0, 0, packet.NoFlow) // the next try is a new flow
}

func TestT11_SynInsideFlowPassesAndChangesNothing(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(ack, 101, 501, 1000)
	k.in(ack, 501, 1101, 0)
	k.now += Mono(100 * time.Second)
	left := k.left()
	k.out(syn, 3_000_000_000, 0, 0)
	k.want(Established)
	if k.left() != left {
		t.Error("the SYN refreshed the flow")
	}
	k.in(ack, 501, 1101, 0) // the server's challenge
	k.out(rst, 1101, 0, 0)  // the client's answer, exact
	k.want(Reset)           //
	k.see(Outbound, syn, 3_000_000_000, 0, 0, packet.NoFlow)
	k.open(3_000_000_000)
	k.want(SynSent)
}

func TestT11_ServerThatForgotTheFlow(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(syn, 3_000_000_000, 0, 0)
	k.see(Inbound, syn|ack, 77, 1_234_567, 0, packet.OutOfWindow)
	k.in(syn|ack, 2_000_000_000, 3_000_000_001, 0)
	k.want(SynReceived)
	k.out(ack, 3_000_000_001, 2_000_000_001, 0)
	k.want(Established)
	k.in(ack, 2_000_000_001, 3_000_000_001, 1000)
}

func TestT11_ChallengeInSynSent(t *testing.T) {
	// The server has an old flow with this tuple that we know nothing of.
	k := newTalk(t, Config{})
	k.open(100)
	k.in(ack, 8_000_000, 9_000_000, 0)
	k.want(SynSent)
	k.out(rst, 9_000_000, 0, 0)
	k.want(SynSent)
	k.out(syn, 100, 0, 0)
	k.in(syn|ack, 500, 101, 0)
	k.want(SynReceived)
	k.see(Inbound, syn, 1, 0, 0, packet.InvalidState)
}

func TestT12_Window(t *testing.T) {
	k := newTalk(t, Config{})
	s := k.seg(syn, 100, 0, 0)
	s.Scale, s.HasScale = 7, true
	k.ref, _ = k.tab.Insert(&k.f, s, k.now)
	s = k.seg(syn|ack, 500, 101, 0)
	s.Scale, s.HasScale = 2, true
	if why := k.tab.Observe(k.ref, Inbound, s, k.now); why != packet.OK {
		t.Fatal(why)
	}
	k.out(ack, 101, 501, 0) // offers 60000<<7
	k.in(ack, 501, 101, 0)  // offers 60000<<2
	k.in(ack, 501+60000<<7-1000, 101, 1000)
	k.see(Inbound, ack, 501+60000<<7+1, 101, 1000, packet.OutOfWindow)
	k.out(ack, 101+60000<<2-1000, 501, 1000)
	k.see(Outbound, ack, 101+60000<<2+1, 501, 1000, packet.OutOfWindow)
	k.see(Outbound, ack, 101, 501+60000<<7+1, 0, packet.OutOfWindow) // acknowledges what was not sent
	// Old duplicates, keepalives, repeated ACKs pass.
	k.out(ack, 100, 501, 1)
	k.out(ack, 101+60000<<2-1, 501, 0)
	k.in(ack, 400, 101, 10)
	k.want(Established)
}

func TestT12_ScaleOnlyIfBothOffer(t *testing.T) {
	k := newTalk(t, Config{})
	s := k.seg(syn, 100, 0, 0)
	s.Scale, s.HasScale = 14, true
	k.ref, _ = k.tab.Insert(&k.f, s, k.now)
	k.in(syn|ack, 500, 101, 0)
	k.out(ack, 101, 501, 0)
	k.see(Inbound, ack, 501+60001, 101, 0, packet.OutOfWindow)
}

func TestT12_ZeroWindowProbe(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(ack, 101, 501, 1000)
	k.wild = 0
	k.in(ack, 501, 1101, 0)
	k.wild = 60000
	for range 5 {
		k.out(ack, 1101, 501, 1)
		k.out(ack, 1100, 501, 0)
	}
	k.see(Outbound, ack, 1101+60001, 501, 1, packet.OutOfWindow)
}

func TestT12_LiberalDropsNothing(t *testing.T) {
	k := newTalk(t, Config{Mode: Liberal})
	k.established()
	k.in(ack, 501+1<<30, 101, 1000)
	k.out(ack, 101, 501+1<<30+1000, 1000)
	k.in(ack, 3, 101, 1000)
	k.in(rst, 1<<29, 0, 0) // in no window: passes, ends nothing
	k.want(Established)
}

func TestT13_Reopen(t *testing.T) {
	serverCloses := func(k *talk) {
		k.established()
		k.in(fin|ack, 501, 101, 0)
		k.out(fin|ack, 101, 502, 0)
		k.in(ack, 502, 102, 0)
		k.want(TimeWait)
	}
	t.Run("higher number, by Observe and Insert", func(t *testing.T) {
		k := newTalk(t, Config{})
		serverCloses(k)
		k.see(Outbound, syn, 5000, 0, 0, packet.NoFlow)
		old := k.ref
		k.open(5000)
		k.want(SynSent)
		if old == k.ref || k.tab.Len() != 1 || k.tab.Stats().Reopened != 1 {
			t.Errorf("old flow not replaced: %d flows", k.tab.Len())
		}
	})
	t.Run("lower number passes, flow stays", func(t *testing.T) {
		k := newTalk(t, Config{})
		serverCloses(k)
		k.out(syn, 50, 0, 0)
		k.want(TimeWait)
		if r, why := k.tab.Insert(&k.f, k.seg(syn, 50, 0, 0), k.now); why != packet.FlowExists || r != k.ref {
			t.Errorf("got %v", why)
		}
		k.in(ack, 502, 102, 0) // the server's challenge
		k.out(rst, 102, 0, 0)
		k.see(Outbound, syn, 50, 0, 0, packet.NoFlow)
	})
}

func TestJ6_HoldAgainstOtherTasks(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(fin|ack, 101, 501, 0)
	k.in(fin|ack, 501, 102, 0)
	k.out(ack, 102, 502, 0)
	k.want(TimeWait)

	other := flowOf(protoTCP, 2, 1000) // same outside tuple, another task
	if _, why := k.tab.Insert(&other, k.seg(syn, 9000, 0, 0), k.now); why != packet.TupleTaken {
		t.Fatalf("other task took the tuple within the hold: %v", why)
	}
	same := k.f // same task, another inner port, same outside tuple
	same.Inner.SrcPort++
	if _, why := k.tab.Insert(&same, k.seg(syn, 9000, 0, 0), k.now); why != packet.OK {
		t.Fatalf("the same task was refused: %v", why)
	}
	k.now += Mono(241 * time.Second) // its handshake is never answered
	if _, why := k.tab.Insert(&other, k.seg(syn, 9000, 0, 0), k.now); why != packet.OK {
		t.Errorf("after the hold: %v", why)
	}
}

func TestJ6_HoldTimes(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.in(rst, 501, 0, 0)
	other := flowOf(protoTCP, 2, 1000)
	k.now += Mono(60*time.Second) - 1
	if _, why := k.tab.Insert(&other, k.seg(syn, 1, 0, 0), k.now); why != packet.TupleTaken {
		t.Errorf("just before 60 s: %v", why)
	}
	k.now += Mono(tick) + 1
	if _, why := k.tab.Insert(&other, k.seg(syn, 1, 0, 0), k.now); why != packet.OK {
		t.Errorf("after 60 s: %v", why)
	}
}

func TestZ8_ResetOfTheTaskIsRevokedByTheServer(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	k.out(rst, 101, 0, 0) // may have died behind us
	k.want(Reset)
	k.see(Inbound, ack, 501+70000, 101, 10, packet.OutOfWindow)
	k.want(Reset)
	k.in(ack, 501, 101, 1000)
	k.want(Established)
	k.wantLeft(240 * time.Second) // on probation
	k.out(ack, 101, 1501, 0)
	k.wantLeft(7440 * time.Second)

	k.in(rst, 1501, 0, 0) // a RST of the server is not revoked
	k.want(Reset)
	k.in(ack, 1501, 101, 1000)
	k.out(ack, 101, 1501, 0)
	k.want(Reset)
}

func TestT15_InFlight(t *testing.T) {
	k := newTalk(t, Config{})
	k.open(100)
	check := func(d Direction, una, nxt uint32, ok bool) {
		t.Helper()
		u, n, o := k.tab.Entry(k.ref).InFlight(d)
		if o != ok || ok && (u != una || n != nxt) {
			t.Errorf("%v: got %d..%d %v, want %d..%d %v", d, u, n, o, una, nxt, ok)
		}
	}
	check(Outbound, 100, 101, true)
	check(Inbound, 0, 0, false)
	k.in(syn|ack, 500, 101, 0)
	k.out(ack, 101, 501, 5000)
	check(Outbound, 101, 5101, true)
	check(Inbound, 501, 501, true)
	k.in(ack, 501, 2101, 100)
	check(Outbound, 2101, 5101, true)
	check(Inbound, 501, 601, true)
}

func TestSuperPacketsCountAsOnTheWire(t *testing.T) {
	k := newTalk(t, Config{})
	k.established()
	s := &Segment{Flags: ack, Seq: 101, Ack: 501, Window: 100, Len: 50_000, Wire: 35, Bytes: 50_000 + 35*40}
	if why := k.tab.Observe(k.ref, Outbound, s, k.now); why != packet.OK {
		t.Fatal(why)
	}
	k.in(ack, 501, 101+50_000, 0)
	want := Counters{OutPackets: 2 + 35, OutBytes: 80 + 50_000 + 35*40, InPackets: 2, InBytes: 80}
	if got := k.tab.Entry(k.ref).Counters(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := k.tab.Entry(k.ref).TCPFlags(Inbound); got != syn|ack {
		t.Errorf("inbound flags %#x, want SYN and ACK", got)
	}
}
