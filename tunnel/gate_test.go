package tunnel

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// flood sends datagrams made by next to e until stop.
func flood(t *testing.T, e *end, stop <-chan struct{}, next func(b []byte)) (wait func()) {
	t.Helper()
	c, err := net.Dial("udp4", e.addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer c.Close()
		b := make([]byte, 1452)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			next(b)
			_, _ = c.Write(b)
			if i%32 == 0 {
				time.Sleep(2 * time.Millisecond) // the socket must not overflow: that is not the gate's doing
			}
		}
	})
	return wg.Wait
}

// sessions returns the session indexes e gave out.
func sessions(e *end) []uint32 {
	e.rx.gate.mu.Lock()
	defer e.rx.gate.mu.Unlock()
	var out []uint32
	for i := range e.rx.gate.lanes {
		out = append(out, i)
	}
	return out
}

// Junk that looks like transport messages, under indexes nobody has and under
// those of a live session, does not shut the gate for the real peer.
func TestZ27_JunkDoesNotWedgeReception(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	indexes := sessions(egress)
	if len(indexes) == 0 {
		t.Fatal("no session index was seen going out")
	}
	stop := make(chan struct{})
	waitRandom := flood(t, egress, stop, func(b []byte) {
		binary.LittleEndian.PutUint32(b, messageTransport)
		binary.LittleEndian.PutUint32(b[4:], rand.Uint32())
	})
	waitLive := flood(t, egress, stop, func(b []byte) {
		binary.LittleEndian.PutUint32(b, messageTransport)
		binary.LittleEndian.PutUint32(b[4:], indexes[rand.IntN(len(indexes))])
		binary.LittleEndian.PutUint64(b[8:], rand.Uint64N(1<<20))
	})
	sent, got := pings(t, host, egress, time.Second)
	close(stop)
	waitRandom()
	waitLive()
	if got < sent/2 {
		t.Errorf("only %d of %d packets came through the junk: %+v", got, sent, []Stats{egress.Stats(), host.Stats()})
	}
	waitFor(t, "the gate to forget the junk", func() bool {
		pings(t, host, egress, 50*time.Millisecond)
		return egress.Stats().RxInFlight == 0
	})
}

// pings sends small packets for some time and counts those that arrive.
func pings(t *testing.T, from, to *end, d time.Duration) (sent, got int) {
	t.Helper()
	before := to.Stats().OpenedPackets
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for to.rx.take(packet.NewBatch()) {
			}
			time.Sleep(time.Millisecond)
		}
	}()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		from.seal(udp("10.1.0.1", "10.2.0.1", []byte("ping")))
		sent++
	}
	// What is late is not lost: the machine may be busy.
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && to.Stats().OpenedPackets-before < uint64(sent); {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	<-done
	return sent, int(to.Stats().OpenedPackets - before)
}

// A real peer that floods us from addresses that are not its own: everything
// it sends is decrypted and dropped by the device. Others get through.
func TestZ1_SpoofingPeerDoesNotWedgeReception(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	bad := newEnd(t, Config{}).run()
	egress.set(
		Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")},
		Peer{ID: 8, PublicKey: bad.PublicKey(), AllowedIPs: prefixes("10.9.0.0/16")})
	bad.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")})
	warm(t, bad, egress, "10.9.0.1", "10.2.0.1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := packet.NewBatch()
		for {
			select {
			case <-stop:
				return
			default:
			}
			tcp(b, "10.1.0.1", "10.2.0.1", 1, make([]byte, 40*1360), 1360)
			bad.Seal(b)
			time.Sleep(500 * time.Microsecond)
		}
	})
	sent, got := pings(t, host, egress, time.Second)
	close(stop)
	wg.Wait()
	if got < sent/2 {
		t.Errorf("only %d of %d packets came through beside a flood of spoofed ones", got, sent)
	}
}

// Whatever happens in whatever order, the gate's total is the sum of its
// sessions' shares.
func TestRxGateAddsUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	clk := clock.NewFake()
	g := newRxGate(128, clk)
	tag := newTagger(1420)
	buf := make([]byte, 65535)
	for step := range 20000 {
		index := uint32(rng.IntN(5))
		l := g.lanes[index]
		switch rng.IntN(6) {
		case 0:
			if rng.IntN(50) == 0 {
				g.learn(index)
			}
		case 1, 2:
			binary.LittleEndian.PutUint32(buf, messageTransport)
			binary.LittleEndian.PutUint32(buf[4:], index)
			for range rng.IntN(100) {
				g.received(tag, [][]byte{buf}, []int{100})
			}
		case 3, 4:
			if l != nil && l.in > l.out {
				seq := l.out + 1 + rng.Uint64N(l.in-l.out)
				g.delivered(index, seq, 1+rng.IntN(int(seq-l.out)))
			}
			g.delivered(index, rng.Uint64N(1<<40), 1) // not a number of ours
		case 5:
			clk.Advance(time.Millisecond)
			g.mu.Lock()
			g.writeOffLocked()
			g.mu.Unlock()
		}
		sum := 0
		for _, l := range g.lanes {
			if l.counted() < 0 || l.out > l.in || l.base > l.in {
				t.Fatalf("step %d: impossible session %+v", step, *l)
			}
			sum += l.counted()
		}
		if sum != g.inFlight() {
			t.Fatalf("step %d: sessions hold %d packets, the gate says %d", step, sum, g.inFlight())
		}
	}
}

// The same for the way out, where two goroutines meet at each peer.
func TestTxGateAddsUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	clk := clock.NewFake()
	l := Limits{}
	if err := l.setDefaults(); err != nil {
		t.Fatal(err)
	}
	g := newTxGate(&l)
	var peers []*peerState
	for i := range 6 {
		peers = append(peers, &peerState{slot: uint32(i + 1)})
	}
	for step := range 20000 {
		p := peers[rng.IntN(len(peers))]
		switch rng.IntN(6) {
		case 0, 1:
			for range rng.IntN(64) {
				if g.admit(p, clk) {
					p.next++
					p.pending++
				}
			}
			g.commit(p)
		case 2, 3:
			if p.read > p.sent {
				if rng.IntN(2) == 0 {
					p.moving.Store(true) // as Send and Write do
				}
				g.left(p, p.sent+1+rng.Uint64N(p.read-p.sent))
			}
			g.left(p, rng.Uint64N(1<<40)+1<<30)
		case 4:
			if rng.IntN(20) == 0 {
				g.writeOff(peers)
			}
			clk.Advance(time.Millisecond)
		case 5:
			if rng.IntN(200) == 0 {
				g.forget(p)
				g.forget(p)
				peers[slices.Index(peers, p)] = &peerState{slot: p.slot + 100}
			}
		}
		var onWay, waiting int64
		for _, p := range peers {
			waiting += int64(p.base - min(p.sent, p.base))
			onWay += int64(p.read - max(p.sent, p.base))
		}
		if onWay != g.onWay.Load() || waiting != g.waiting.Load() {
			t.Fatalf("step %d: peers hold %d and %d packets, the gate says %d and %d",
				step, onWay, waiting, g.onWay.Load(), g.waiting.Load())
		}
	}
}

// The gate's book-keeping with a fake clock: a session whose packets never
// come out is written off, then suspected and held to its share; the first
// packet that comes out clears it.
func TestRxGateSuspects(t *testing.T) {
	clk := clock.NewFake()
	g := newRxGate(128, clk)
	g.learn(1)
	g.learn(2)
	msg := func(index uint32, n int) (bufs [][]byte, sizes []int) {
		for range n {
			b := make([]byte, 65535)
			binary.LittleEndian.PutUint32(b, messageTransport)
			binary.LittleEndian.PutUint32(b[4:], index)
			bufs, sizes = append(bufs, b), append(sizes, 1452)
		}
		return bufs, sizes
	}
	tag := newTagger(1420)
	receive := func(index uint32, n int) (refused int) {
		bufs, sizes := msg(index, n)
		return g.received(tag, bufs, sizes)
	}
	if n := receive(3, 1000); n != 0 || g.inFlight() != 0 {
		t.Fatalf("an unknown index counts: refused %d, in flight %d", n, g.inFlight())
	}
	receive(1, 100)
	receive(2, 50)
	if g.inFlight() != 150 {
		t.Fatalf("in flight %d, want 150", g.inFlight())
	}
	w := g.newWaiter()
	closed := make(chan struct{})
	done := make(chan bool)
	go func() { done <- g.wait(w, closed) }()
	g.delivered(2, 50, 50)
	if !<-done {
		t.Fatal("gate closed")
	}
	if g.inFlight() != 100 {
		t.Fatalf("in flight %d, want 100", g.inFlight())
	}
	// Nothing of session 1 comes out.
	receive(1, 128)
	if !g.wait(w, closed) || g.inFlight() != 0 {
		t.Fatalf("a silent session is not written off: %d", g.inFlight())
	}
	if n := receive(1, suspectBurst+100); n != 100 || g.inFlight() != 0 {
		t.Fatalf("a suspect got %d packets refused, want 100; %d in flight", n, g.inFlight())
	}
	clk.Advance(10 * suspectInterval)
	if n := receive(1, 20); n != 10 {
		t.Fatalf("%d packets refused, want 10 of 20", n)
	}
	l := g.lanes[1]
	g.delivered(1, l.in-1, 1)
	if clk.Advance(suspectInterval); receive(1, 2) != 1 {
		t.Fatal("one packet that came out among hundreds that did not clears a suspect")
	}
	for l.suspect {
		clk.Advance(suspectInterval)
		receive(1, 1)
		g.delivered(1, l.in, 1)
		if l.in > 10000 {
			t.Fatal("a session that is good again stays a suspect")
		}
	}
	if n := receive(1, 100); n != 0 || g.inFlight() != 100 {
		t.Fatalf("a cleared session: refused %d, in flight %d", n, g.inFlight())
	}
	// Old indexes go.
	clk.Advance(laneLife + time.Second)
	for i := range uint32(64) {
		g.learn(100 + i)
	}
	if g.lanes[1] != nil || g.inFlight() != 0 {
		t.Fatalf("an expired index is still there, %d in flight", g.inFlight())
	}
	close(closed)
	receive(100, 128)
	if g.wait(w, closed) {
		t.Fatal("wait does not see the end")
	}
}

func TestRingFullIsCounted(t *testing.T) {
	// Not running: nothing drains the ring.
	e := newEnd(t, Config{Limits: Limits{TxBatches: 4, SealWait: 20 * time.Millisecond}})
	for range 4 {
		e.seal(udp("10.1.0.1", "10.2.0.1", nil))
	}
	began := time.Now()
	b := packet.NewBatch()
	tcp(b, "10.1.0.1", "10.2.0.1", 1, make([]byte, 45*1360), 1360)
	e.Seal(b)
	if d := time.Since(began); d < 20*time.Millisecond || d > 5*time.Second {
		t.Errorf("Seal waited %v for room, want 20ms", d)
	}
	if n := e.Stats().Dropped[packet.QueueFull]; n != 45 {
		t.Errorf("%d wire packets counted as dropped, want 45", n)
	}
	if len(b.Packets) != 0 || b.Full(packet.MaxPacket) {
		t.Error("the batch is not usable after a drop")
	}
}

// blast sends bulk traffic as fast as it goes to an egress whose Open is slow,
// and returns the highest heap and RSS seen.
func blast(t *testing.T, d time.Duration) (heap, rss int64, st Stats) {
	host, egress := twoEnds(t, Config{}, Config{})
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // as the command does
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // resets VmHWM
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := packet.NewBatch()
		payload := make([]byte, 45*1360)
		for {
			select {
			case <-stop:
				return
			default:
			}
			tcp(b, "10.1.0.1", "10.2.0.1", 1, payload, 1360)
			host.Seal(b)
		}
	})
	wg.Go(func() {
		b := packet.NewBatch()
		for egress.Open(b) == nil {
			time.Sleep(10 * time.Millisecond)
		}
	})
	var ms runtime.MemStats
	for end := time.Now().Add(d); time.Now().Before(end) || egress.Stats().Dropped[packet.QueueFull] == 0; time.Sleep(20 * time.Millisecond) {
		runtime.ReadMemStats(&ms)
		heap = max(heap, int64(ms.HeapInuse))
	}
	rss, st = rssPeak(), egress.Stats()
	close(stop)
	egress.stop()
	wg.Wait()
	return heap, rss, st
}

// wireguard-go alone takes close to 1 GB here.
func TestMemoryIsBoundedUnderABlast(t *testing.T) {
	heap, rss, st := blast(t, time.Second)
	t.Logf("two ends in one process: heap in use %d MB, peak RSS %d MB, %d opened, %d dropped for a full ring, %d in flight",
		heap>>20, rss>>20, st.OpenedPackets, st.Dropped[packet.QueueFull], st.RxInFlight)
	if heap > 192<<20 {
		t.Errorf("heap grew to %d MB", heap>>20)
	}
	if rss > 128<<20 && !raceEnabled {
		t.Errorf("RSS grew to %d MB", rss>>20)
	}
	if st.Dropped[packet.QueueFull] == 0 {
		t.Error("no drop was counted though Open was too slow")
	}
}
