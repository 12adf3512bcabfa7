package device

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

func TestReadTakesAllPortsInTurn(t *testing.T) {
	g := newGroup(t, Config{Quantum: 8})
	var wires [3]*wire
	for i := range wires {
		var tun *TUN
		tun, wires[i] = newWire(t, vnetLen)
		add(t, g, uint32(i), tun)
	}
	data := pkt.UDP(client4, server4, []byte("x"))
	for range 100 {
		wires[0].put(make([]byte, vnetLen), data) // floods
	}
	wires[1].put(make([]byte, vnetLen), data)
	wires[2].put(vnetHeader(2, 0, 0, 0, 0, 0), data)
	b := NewBatch()
	if err := g.Read(b); err != nil {
		t.Fatal(err)
	}
	pos := map[uint32]int{}
	for i, p := range b.Packets {
		if _, seen := pos[p.Port]; !seen {
			pos[p.Port] = i
		}
	}
	if len(b.Packets) != 102 || pos[1] > 10 || pos[2] > 10 || len(pos) != 3 {
		t.Errorf("%d packets, first of each port at %v: a flooding port keeps the others waiting", len(b.Packets), pos)
	}
	if p := b.Packets[pos[2]]; !p.GSO.Verified || string(p.Data) != string(data) {
		t.Errorf("packet of port 2: %+v", p)
	}
	if s, ok := g.Stats(0); !ok || s.ReadPackets != 100 || s.ReadSegments != 100 || s.ReadBytes != uint64(100*len(data)) {
		t.Errorf("stats of port 0: %+v", s)
	}
}

func TestReadLeavesHeadroom(t *testing.T) {
	g := newGroup(t, Config{})
	tun, w := newWire(t, vnetLen)
	add(t, g, 1, tun)
	for range 3 {
		w.put(make([]byte, vnetLen), pkt.UDP(client4, server4, make([]byte, 99)))
	}
	b := NewBatch()
	if err := g.Read(b); err != nil || len(b.Packets) != 3 {
		t.Fatalf("%v, %d packets", err, len(b.Packets))
	}
	for i, p := range b.Packets {
		if cap(p.Data)-len(p.Data) < packet.Tailroom {
			t.Errorf("packet %d has %d bytes behind it, want %d", i, cap(p.Data)-len(p.Data), packet.Tailroom)
		}
	}
}

func TestReadWithoutVirtioHeader(t *testing.T) {
	g := newGroup(t, Config{})
	tun, w := newWire(t, 0)
	add(t, g, 1, tun)
	data := pkt.UDP(client4, server4, []byte("plain"))
	w.put(nil, data)
	b := NewBatch()
	if err := g.Read(b); err != nil || len(b.Packets) != 1 || string(b.Packets[0].Data) != string(data) {
		t.Fatalf("%v, %+v", err, b.Packets)
	}
}

func TestG6_BadHeadersAreCountedAndTheRestPasses(t *testing.T) {
	g := newGroup(t, Config{})
	tun, w := newWire(t, vnetLen)
	add(t, g, 1, tun)
	data := pkt.TCP(client4, server4, packet.ACK, 1, 1, make([]byte, 100))
	w.put(vnetHeader(1, 1, 40, 0, 20, 16), data)
	w.put(vnetHeader(1, 0, 40, 0, 99, 16), data)
	w.put(nil, []byte("short"))
	w.put(make([]byte, vnetLen), data)
	b := NewBatch()
	if err := g.Read(b); err != nil || len(b.Packets) != 1 {
		t.Fatalf("%v, %d packets, want the one good one", err, len(b.Packets))
	}
	if s, _ := g.Stats(1); s.Drops[packet.BadOffload] != 2 || s.Drops[packet.Truncated] != 1 {
		t.Errorf("drops %v: want 2 bad-offload, 1 truncated", s.Drops)
	}
}

func TestPortThatDiesTakesOnlyItselfAway(t *testing.T) {
	down := make(chan uint32, 1)
	g := newGroup(t, Config{OnPortDown: func(port uint32, err error) {
		if err == nil {
			t.Error("a port went down for no reason")
		}
		down <- port
	}})
	dying, dw := newWire(t, vnetLen)
	living, lw := newWire(t, vnetLen)
	add(t, g, 1, dying)
	add(t, g, 2, living)
	got := make(chan int)
	go func() {
		b := NewBatch()
		for g.Read(b) == nil {
			got <- len(b.Packets)
		}
		close(got)
	}()
	dw.hangUp()
	if port := <-down; port != 1 {
		t.Errorf("port %d went down, want 1", port)
	}
	if _, ok := g.Stats(1); ok {
		t.Error("the dead port is still there")
	}
	lw.put(make([]byte, vnetLen), pkt.UDP(client4, server4, nil))
	if n := <-got; n != 1 {
		t.Errorf("%d packets from the living port, want 1", n)
	}
	if err := g.Remove(1); !errors.Is(err, ErrNoPort) {
		t.Errorf("Remove of a port that went down: %v, want ErrNoPort", err)
	}
	g.Close()
	for range got {
	}
}

func TestAddAndRemoveWhileReading(t *testing.T) {
	g := newGroup(t, Config{})
	done := make(chan error)
	seen := make(chan uint32, 1000)
	go func() {
		b := NewBatch()
		for {
			if err := g.Read(b); err != nil {
				done <- err
				return
			}
			for _, p := range b.Packets {
				seen <- p.Port
			}
		}
	}()
	data := pkt.UDP(client4, server4, []byte("x"))
	var wg sync.WaitGroup
	for i := range uint32(4) {
		wg.Go(func() {
			out := NewBatch()
			pkt.OfPacket(out, packet.Packet{Data: data, Port: i})
			for range 50 {
				tun, w := newWire(t, vnetLen)
				if err := g.Add(i, tun); err != nil {
					t.Error(err)
					return
				}
				w.put(make([]byte, vnetLen), data)
				g.Write(out)
				if err := g.Remove(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// The last life of a port is served like the first.
	tun, w := newWire(t, vnetLen)
	add(t, g, 77, tun)
	w.put(make([]byte, vnetLen), data)
	for port := range seen {
		if port == 77 {
			break
		}
	}
	if err := g.Add(77, tun); !errors.Is(err, ErrPortTaken) {
		t.Errorf("Add of a port that is there: %v, want ErrPortTaken", err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ended with %v, want os.ErrClosed", err)
	}
	if err := g.Add(5, tun); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Add after Close: %v, want os.ErrClosed", err)
	}
}

func TestThousandPorts(t *testing.T) {
	g := newGroup(t, Config{})
	const n = 1000
	wires := make([]*wire, n)
	for i := range wires {
		var tun *TUN
		tun, wires[i] = newWire(t, vnetLen)
		add(t, g, uint32(i), tun)
	}
	data := pkt.UDP(client4, server4, []byte("x"))
	for _, w := range wires {
		w.put(make([]byte, vnetLen), data)
	}
	seen := map[uint32]bool{}
	for b := NewBatch(); len(seen) < n; {
		if err := g.Read(b); err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Packets {
			if seen[p.Port] {
				t.Fatalf("port %d twice", p.Port)
			}
			seen[p.Port] = true
		}
	}
}

func TestWriteToNobody(t *testing.T) {
	g := newGroup(t, Config{})
	b := NewBatch()
	pkt.OfPacket(b, packet.Packet{Data: pkt.UDP(client4, server4, nil), Port: 5})
	b.Append(pkt.UDP(client4, server4, nil)).Drop()
	g.Write(b)
	if n := g.NoRoute(); n != 1 {
		t.Errorf("%d packets without a port, want 1: dropped ones do not count", n)
	}
}

func TestConcurrentWrites(t *testing.T) {
	g := newGroup(t, Config{})
	tun, w := newWire(t, vnetLen)
	add(t, g, 1, tun)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := NewBatch()
			for i := range 30 {
				p := seg(pkt.Opts{}, packet.ACK, i)
				p.Port = 1
				pkt.OfPacket(b, p)
			}
			for range 5 {
				g.Write(b)
			}
		})
	}
	wg.Wait()
	if n := len(segments(t, w.get(vnetLen))); n != 4*5*30 {
		t.Errorf("%d segments arrived, want %d", n, 4*5*30)
	}
}

func TestWaitingReadersHoldNoThreads(t *testing.T) {
	threads := func() int {
		all, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := threads()
	const n = 64
	var wg sync.WaitGroup
	var groups []*Group
	var entered atomic.Int64
	for range n {
		g := newGroup(t, Config{})
		tun, _ := newWire(t, vnetLen)
		add(t, g, 1, tun)
		groups = append(groups, g)
		wg.Go(func() {
			entered.Add(1)
			if err := g.Read(NewBatch()); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read: %v", err)
			}
		})
	}
	eventually(t, "all readers started", func() bool { return entered.Load() == n })
	time.Sleep(20 * time.Millisecond) // a thread would be blocked in epoll_wait by now
	if more := threads() - before; more > n/2 {
		t.Errorf("%d waiting readers took %d OS threads", n, more)
	}
	for _, g := range groups {
		g.Close()
	}
	wg.Wait()
}

func TestKernelThatRefusesTrains(t *testing.T) {
	// An event descriptor refuses every write that has not 8 bytes with EINVAL,
	// as some kernels do with super-packets.
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	tun := &TUN{name: "refuser", front: vnetLen}
	tun.fd.fd = fd
	tun.tso.Store(true)
	tun.uso.Store(true)
	g := newGroup(t, Config{})
	add(t, g, 1, tun)
	b := NewBatch()
	for i := range 10 {
		p := seg(pkt.Opts{}, packet.ACK, i)
		p.Port = 1
		pkt.OfPacket(b, p)
	}
	g.Write(b)
	g.Write(b)
	s, ok := g.Stats(1)
	if !ok || s.OffloadFallbacks != 1 || s.Merged != 0 {
		t.Errorf("%+v: one refusal must be enough, and no reason to lose the port", s)
	}
	if s.Drops[packet.DeviceError] != 20 {
		t.Errorf("%d packets dropped, want 20: each was tried alone", s.Drops[packet.DeviceError])
	}
	if tun.takes(packet.GSOTCP4) || !tun.takes(packet.GSOUDP) {
		t.Error("only what was refused is given up")
	}
}

func TestNewGroupRefusesNonsense(t *testing.T) {
	for _, q := range []int{-1, packet.MaxBatch + 1} {
		if g, err := NewGroup(Config{Quantum: q}); err == nil {
			g.Close()
			t.Errorf("quantum %d was accepted", q)
		}
	}
}

func TestNoAllocs(t *testing.T) {
	g := newGroup(t, Config{})
	tun, w := newWire(t, vnetLen)
	add(t, g, 1, tun)
	var frames [][]byte
	out := NewBatch()
	for i := range 10 {
		for _, p := range []packet.Packet{seg(pkt.Opts{}, packet.ACK, i), seg6(pkt.Opts{}, i), dgram(pkt.Opts{}, i, 50),
			plain(pkt.Echo(client6.Addr(), server6.Addr(), 1, 1, pkt.Request, nil))} {
			p.Port = 1
			pkt.OfPacket(out, p)
			frames = append(frames, append(make([]byte, vnetLen), p.Data...))
		}
	}
	in := NewBatch()
	if n := testing.AllocsPerRun(100, func() {
		for _, f := range frames {
			if _, err := unix.Write(w.fd, f); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Read(in); err != nil || len(in.Packets) != len(frames) {
			t.Fatalf("%v, %d packets", err, len(in.Packets))
		}
	}); n != 0 {
		t.Errorf("Read allocates %v times per batch", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		g.Write(out)
		for {
			if _, errno := readFD(w.fd, w.buf); errno != 0 {
				return
			}
		}
	}); n != 0 {
		t.Errorf("Write allocates %v times per batch", n)
	}
	a, b := NewPipe()
	defer a.Close()
	defer b.Close()
	if n := testing.AllocsPerRun(100, func() {
		a.Write(out)
		if err := b.Read(in); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a pipe allocates %v times per batch", n)
	}
}
