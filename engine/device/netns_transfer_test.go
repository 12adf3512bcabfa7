//go:build netns && linux

package device

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

func itoa(n int) string { return strconv.Itoa(n) }

// carrier says how the packets get from one namespace to the other.
type carrier uint8

const (
	asTheyAre carrier = iota // super-packets stay whole
	cutFirst                 // as wire packets, as a tunnel delivers them
)

// bridge carries packets from one group to another until from is closed.
type bridge struct {
	supers atomic.Uint64 // super-packets read
	tooBig atomic.Uint64 // wire packets above the MTU
}

func (br *bridge) run(from, to *Group, how carrier) {
	b, out := NewBatch(), NewBatch()
	var s packet.Segmenter
	buf := make([]byte, packet.MaxPacket)
	for from.Read(b) == nil {
		for i := range b.Packets {
			p := &b.Packets[i]
			wire := len(p.Data)
			if p.GSO.Type != packet.GSONone {
				br.supers.Add(1)
				wire = int(p.GSO.HdrLen) + int(p.GSO.Size)
			}
			if wire > 1500 {
				br.tooBig.Add(1)
			}
		}
		if how == asTheyAre {
			to.Write(b)
			continue
		}
		for i := range b.Packets {
			if s.Start(&b.Packets[i]) != packet.OK {
				continue
			}
			for more := true; more; {
				var n int
				n, more = s.Next(buf)
				if out.Full(n) {
					to.Write(out)
					out.Reset()
				}
				out.Append(buf[:n]).Port = b.Packets[i].Port
			}
		}
		to.Write(out)
		out.Reset()
	}
}

// pair is two namespaces with a TUN each, and a bridge between.
type pair struct {
	a, b   *space
	ga, gb *Group
	ab, ba bridge
}

func newPair(t testing.TB, offA, offB Offload, how carrier) *pair {
	t.Helper()
	p := &pair{a: newSpace(t), b: newSpace(t), ga: newGroup(t, Config{}), gb: newGroup(t, Config{})}
	add(t, p.ga, 1, p.a.tun(TUNConfig{Name: "spill0", Offload: offA}, 1))
	add(t, p.gb, 1, p.b.tun(TUNConfig{Name: "spill0", Offload: offB}, 2))
	var wg sync.WaitGroup
	wg.Go(func() { p.ab.run(p.ga, p.gb, how) })
	wg.Go(func() { p.ba.run(p.gb, p.ga, how) })
	t.Cleanup(func() {
		p.ga.Close()
		p.gb.Close()
		wg.Wait()
	})
	return p
}

// transfer sends n bytes over TCP from one namespace to the other and checks
// that they arrive as they were. It returns how long it took.
func transfer(t testing.TB, from, to *space, addr string, n int64) time.Duration {
	t.Helper()
	var l net.Listener
	var err error
	to.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type sum [sha256.Size]byte
	got := make(chan sum, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		if _, err := io.CopyBuffer(h, struct{ io.Reader }{c}, make([]byte, 1<<20)); err == nil {
			got <- sum(h.Sum(nil))
		}
	}()
	var c net.Conn
	from.do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	h := sha256.New()
	src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), n), h)
	if _, err := io.CopyBuffer(struct{ io.Writer }{c}, src, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	sumGot, ok := <-got
	if !ok || sumGot != sum(h.Sum(nil)) {
		t.Fatalf("%d bytes to %s did not arrive as they were sent", n, addr)
	}
	return time.Since(start)
}

func TestG1_TransferWithAndWithoutOffloads(t *testing.T) {
	for _, tt := range []struct {
		name       string
		size       int64
		offA, offB Offload
		how        carrier
		supers     bool // A's kernel gives super-packets
		merged     bool // B is given super-packets of our making
	}{
		{"offloads on both sides", 200 << 20, OffloadAll, OffloadAll, asTheyAre, true, false},
		{"cut in between and merged again", 200 << 20, OffloadAll, OffloadAll, cutFirst, true, true},
		{"offloads only here", 50 << 20, OffloadAll, OffloadNone, asTheyAre, true, false},
		{"no offloads", 50 << 20, OffloadNone, OffloadNone, asTheyAre, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, tt.offA, tt.offB, tt.how)
			for _, addr := range []string{"10.9.0.%d:0", "[fd09::%d]:0"} {
				there := transfer(t, p.a, p.b, fmt.Sprintf(addr, 2), tt.size)
				back := transfer(t, p.b, p.a, fmt.Sprintf(addr, 1), tt.size)
				t.Logf("%s: %.2f Gb/s there, %.2f Gb/s back", addr, 8*float64(tt.size)/1e9/there.Seconds(), 8*float64(tt.size)/1e9/back.Seconds())
			}
			if n := p.ab.supers.Load(); n > 0 != tt.supers {
				t.Errorf("%d super-packets were read, want some: %v", n, tt.supers)
			}
			if n := p.ab.tooBig.Load() + p.ba.tooBig.Load(); n != 0 {
				t.Errorf("%d wire packets are larger than the MTU", n)
			}
			st, _ := p.gb.Stats(1)
			if st.Merged > 0 != tt.merged {
				t.Errorf("%d packets were merged, want some: %v", st.Merged, tt.merged)
			}
			if st.OffloadFallbacks != 0 || st.Drops != [packet.NumReasons]uint64{} {
				t.Errorf("drops %v, fallbacks %d", st.Drops, st.OffloadFallbacks)
			}
			t.Logf("B: %d writes for %d wire packets, %d merged", st.WritePackets, st.WriteSegments, st.Merged)
		})
	}
}

func TestG3_DatagramsKeepTheirBoundaries(t *testing.T) {
	for _, how := range []carrier{asTheyAre, cutFirst} {
		p := newPair(t, OffloadAll, OffloadAll, how)
		for _, host := range []string{"10.9.0.%d", "fd09::%d"} {
			addr := func(n int) string { return net.JoinHostPort(fmt.Sprintf(host, n), "0") }
			var rx, tx net.PacketConn
			var err error
			p.b.do(func() { rx, err = net.ListenPacket("udp", addr(2)) })
			if err != nil {
				t.Fatal(err)
			}
			p.a.do(func() { tx, err = net.ListenPacket("udp", addr(1)) })
			if err != nil {
				t.Fatal(err)
			}
			to := rx.LocalAddr().(*net.UDPAddr).AddrPort()
			// Some singly, an empty one among them, then a train.
			want := []int{5, 0, 1200, 1200, 7}
			for i, n := range want {
				if _, err := tx.(*net.UDPConn).WriteToUDPAddrPort(bytes.Repeat([]byte{byte(i)}, n), to); err != nil {
					t.Fatal(err)
				}
			}
			for range 20 {
				want = append(want, 1000)
			}
			sendSuper(t, tx.(*net.UDPConn), to.String(), 20, 1000)
			buf := make([]byte, 65536)
			if err := rx.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for i, n := range want {
				k, _, err := rx.ReadFrom(buf)
				if err != nil || k != n {
					t.Fatalf("%s: datagram %d: %d bytes, %v, want %d bytes", host, i, k, err, n)
				}
			}
			tx.Close()
			rx.Close()
		}
	}
}
