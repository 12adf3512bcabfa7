package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

// patient never drops for want of CPU.
var patient = Config{Limits: Limits{SealWait: time.Second, OpenWait: time.Second}}

// stream sends total bytes as super-packets and compares what arrives.
func stream(t *testing.T, from, to *end, src, dst string, peer uint32, total, super, mss int) {
	t.Helper()
	data := make([]byte, total)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	// UDP underneath loses what runs ahead: stay within a window, as TCP would.
	var arrived atomic.Int64
	go func() {
		b := packet.NewBatch()
		for off := 0; off < total; {
			if int64(off)-arrived.Load() > 1<<20 {
				from.Seal(b)
				time.Sleep(100 * time.Microsecond)
				continue
			}
			n := min(super, total-off)
			if tcp(b, src, dst, uint32(off), data[off:off+n], mss) == nil {
				from.Seal(b)
				continue
			}
			off += n
		}
		from.Seal(b)
	}()
	got := make([]byte, total)
	have, packets := 0, 0
	to.collect(func(pk *packet.Packet) bool {
		p, seq := payloadOf(t, pk)
		if pk.Peer != peer {
			t.Errorf("packet says it came from peer %d, want %d", pk.Peer, peer)
		}
		if len(p) > mss {
			t.Errorf("segment of %d bytes was not cut to %d", len(p), mss)
		}
		copy(got[seq:], p)
		have += len(p)
		arrived.Store(int64(have))
		packets++
		return have < total
	})
	if have != total {
		t.Fatalf("%d of %d bytes arrived in %d packets; sender %+v", have, total, packets, from.Stats())
	}
	if sha256.Sum256(got) != sha256.Sum256(data) {
		t.Fatal("bytes changed on the way")
	}
}

// Super-packets are cut inside the tunnel and arrive complete, byte for byte,
// both ways and in both families.
func TestStreamBothFamiliesBothWays(t *testing.T) {
	host, egress := twoEnds(t, patient, patient)
	for _, c := range []struct {
		name, src, dst string
		from, to       *end
		peer           uint32
		mss            int
	}{
		{"up v4", "10.1.0.5", "10.2.0.6", host, egress, 7, 1360},
		{"down v4", "10.2.0.6", "10.1.0.5", egress, host, 9, 1360},
		{"up v6", "fd01::5", "fd02::6", host, egress, 7, 1340},
		{"down v6", "fd02::6", "fd01::5", egress, host, 9, 1340},
	} {
		t.Run(c.name, func(t *testing.T) {
			stream(t, c.from, c.to, c.src, c.dst, c.peer, 8<<20, 45*c.mss+77, c.mss)
		})
	}
	for _, e := range []*end{host, egress} {
		waitFor(t, "the gates to be empty", func() bool {
			st := e.Stats()
			return st.TxInFlight == 0 && st.RxInFlight == 0 && st.TxWaiting == 0
		})
	}
}

func TestUDPIPv6Underlay(t *testing.T) {
	host, egress := newEnd(t, Config{Family: IPv6Family}).run(), newEnd(t, Config{Family: IPv6Family}).run()
	at := egress.addr()
	at = mustAddrPort(t, fmt.Sprintf("[::1]:%d", at.Port()))
	egress.set(Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")})
	host.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: at, AllowedIPs: prefixes("10.2.0.0/16")})
	warm(t, host, egress, "10.1.0.1", "10.2.0.1")
	stream(t, host, egress, "10.1.0.1", "10.2.0.1", 7, 1<<20, 30000, 1360)
	st := egress.Peers()
	if len(st) != 1 || !st[0].Addr.Addr().Is6() || st[0].LastHandshake.IsZero() || st[0].RxBytes < 1<<20 {
		t.Fatalf("status of the peer: %+v", st)
	}
	if err := host.SetPeers([]Peer{{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr()}}); err == nil {
		t.Fatal("an IPv4 address was taken though the socket is IPv6 only")
	}
}

// A socket that was asked to speak IPv6 only is deaf to IPv4.
func TestFamilyIsDeafToTheOther(t *testing.T) {
	host, egress := newEnd(t, Config{}).run(), newEnd(t, Config{Family: IPv6Family}).run()
	egress.set(Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")})
	host.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")})
	host.seal(udp("10.1.0.1", "10.2.0.1", []byte("hello")))
	openedNothing(t, egress)
	if st := egress.Peers()[0]; !st.LastHandshake.IsZero() || st.RxBytes != 0 {
		t.Fatalf("a handshake came in over IPv4: %+v", st)
	}
}

// A thousand tasks behind one peer, and prefixes of two endpoints at one
// egress: one tunnel carries them all.
func TestManyTasksOneTunnel(t *testing.T) {
	host, egress := newEnd(t, patient).run(), newEnd(t, patient).run()
	egress.set(Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("100.112.0.0/22", "100.113.0.0/22")})
	host.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("0.0.0.0/0")})
	const tasks = 1000
	src := func(i int) string { return fmt.Sprintf("100.%d.%d.%d", 112+i%2, i/2/250, i/2%250+1) }
	warm(t, host, egress, src(0), "192.0.2.1")
	seen := map[string]bool{}
	go func() {
		for i := range tasks {
			host.seal(udp(src(i), "192.0.2.1", []byte(src(i))))
		}
	}()
	egress.collect(func(pk *packet.Packet) bool {
		p, _ := payloadOf(t, pk)
		if pk.Peer != 7 {
			t.Errorf("peer %d", pk.Peer)
		}
		seen[string(p)] = true
		return len(seen) < tasks
	})
	if len(seen) != tasks {
		t.Fatalf("%d of %d tasks got through; sender %+v", len(seen), tasks, host.Stats())
	}
}

// A packet that says which peer it is for goes there or nowhere.
func TestPacketPeerMustAgree(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	b := packet.NewBatch()
	b.Append(udp("10.1.0.1", "10.2.0.1", []byte("right"))).Peer = 9
	b.Append(udp("10.1.0.1", "10.2.0.1", []byte("wrong"))).Peer = 8
	b.Append(udp("10.1.0.1", "10.3.0.1", []byte("nowhere")))
	b.Append([]byte{0x45, 0, 0, 5, 1})
	host.Seal(b)
	if len(b.Packets) != 0 || b.Full(packet.MaxPacket) {
		t.Error("Seal gave a batch back that cannot be filled")
	}
	egress.collect(func(pk *packet.Packet) bool {
		if p, _ := payloadOf(t, pk); string(p) != "right" {
			t.Errorf("got %q", p)
		}
		return false
	})
	waitFor(t, "three drops", func() bool { return host.Stats().Dropped[packet.NoRoute] == 3 })
}

// A peer may use only its own addresses: the identity of Open is the peer's.
func TestZ1_PeerCannotUseForeignSource(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	other := newEnd(t, Config{}).run()
	egress.set(
		Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")},
		Peer{ID: 8, PublicKey: other.PublicKey(), AllowedIPs: prefixes("10.9.0.0/16")})
	other.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")})
	other.seal(
		udp("10.1.0.1", "10.2.0.1", []byte("spoofed")),
		udp("10.9.0.1", "10.2.0.1", []byte("own")))
	egress.collect(func(pk *packet.Packet) bool {
		if p, _ := payloadOf(t, pk); string(p) != "own" || pk.Peer != 8 {
			t.Errorf("got %q from peer %d", p, pk.Peer)
		}
		return false
	})
}

func TestPortInUse(t *testing.T) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).Port
	e := newEnd(t, Config{ListenPort: port})
	err = e.Run(context.Background())
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Fatalf("error %q does not name the port that is in use", err)
	}
	if err := e.Run(context.Background()); !errors.Is(err, ErrRunning) {
		t.Fatalf("second Run: %v", err)
	}
	if err := e.Open(packet.NewBatch()); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("Open after the end: %v", err)
	}
}

func TestAfterTheEnd(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	opened := make(chan error, 2)
	for range 2 {
		go func() { opened <- host.Open(packet.NewBatch()) }()
	}
	host.stop()
	for range 2 {
		if err := <-opened; !errors.Is(err, os.ErrClosed) {
			t.Fatalf("Open: %v", err)
		}
	}
	host.seal(udp("10.1.0.1", "10.2.0.1", nil))
	if n := host.Stats().Dropped[packet.ShuttingDown]; n != 1 {
		t.Fatalf("%d packets counted as dropped at the end", n)
	}
	if err := host.Initiate(9); !errors.Is(err, ErrNotRunning) {
		t.Fatal(err)
	}
	host.set() // still possible
	if err := egress.Initiate(4711); !errors.Is(err, ErrUnknownPeer) {
		t.Fatal(err)
	}
}

// Initiate makes a session without traffic; Renew replaces one that the other
// side lost, long before WireGuard's own 15 s.
func TestInitiateAndRenew(t *testing.T) {
	host := newEnd(t, Config{}).run()
	key := testKey(t)
	egress := newEnd(t, Config{PrivateKey: key}).run()
	hostPeer := Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")}
	egress.set(hostPeer)
	host.set(Peer{ID: 9, PublicKey: key.Public(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")})
	if err := egress.Initiate(7); err == nil {
		t.Error("Initiate to a peer without an address succeeded")
	}
	if err := host.Initiate(9); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a handshake", func() bool { return !egress.Peers()[0].LastHandshake.IsZero() })

	port := egress.ListenPort()
	egress.stop()
	egress = newEnd(t, Config{PrivateKey: key, ListenPort: port}).run()
	egress.set(hostPeer)
	began := time.Now()
	if err := host.Renew(9); err != nil {
		t.Fatal(err)
	}
	host.seal(udp("10.1.0.1", "10.2.0.1", []byte("again")))
	egress.collect(func(*packet.Packet) bool { return false })
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("recovery took %v", d)
	}
}

// RFC 8439 keys apart: with a pre-shared key on one side only there is no
// session; with it on both there is.
func TestPresharedKey(t *testing.T) {
	host, egress := newEnd(t, Config{}).run(), newEnd(t, Config{}).run()
	psk, err := GeneratePresharedKey()
	if err != nil {
		t.Fatal(err)
	}
	hp := Peer{ID: 7, PublicKey: host.PublicKey(), PresharedKey: psk, AllowedIPs: prefixes("10.1.0.0/16")}
	ep := Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")}
	egress.set(hp)
	host.set(ep)
	host.seal(udp("10.1.0.1", "10.2.0.1", []byte("no")))
	openedNothing(t, egress)
	ep.PresharedKey = psk
	host.set(ep)
	if err := host.Renew(9); err != nil {
		t.Fatal(err)
	}
	egress.collect(func(*packet.Packet) bool { return false })
}
