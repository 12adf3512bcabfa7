package tunnel

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// end is a tunnel that runs for the length of a test.
type end struct {
	*Stock
	t    testing.TB
	stop func()
}

func testKey(t testing.TB) PrivateKey {
	t.Helper()
	k, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newEnd(t testing.TB, cfg Config) *end {
	t.Helper()
	if cfg.PrivateKey.IsZero() {
		cfg.PrivateKey = testKey(t)
	}
	s, err := NewStock(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &end{Stock: s, t: t}
}

// run starts e and waits until it is up.
func (e *end) run() *end {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	select {
	case <-e.Ready():
	case err := <-done:
		cancel()
		e.t.Fatal("tunnel did not come up:", err)
	}
	stopped := false
	e.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			e.t.Error("Run:", err)
		}
	}
	e.t.Cleanup(e.stop)
	return e
}

func (e *end) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(e.ListenPort()))
}

func (e *end) set(peers ...Peer) {
	e.t.Helper()
	if err := e.SetPeers(peers); err != nil {
		e.t.Fatal(err)
	}
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i, p := range s {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

// twoEnds returns a host (10.1.0.0/16, fd01::/32) and an egress (10.2.0.0/16,
// fd02::/32) that know each other as peers 7 and 9.
func twoEnds(t testing.TB, host, egress Config) (h, e *end) {
	t.Helper()
	h, e = newEnd(t, host).run(), newEnd(t, egress).run()
	e.set(Peer{Name: "host", ID: 7, PublicKey: h.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16", "fd01::/32")})
	h.set(Peer{Name: "egress", ID: 9, PublicKey: e.PublicKey(), Addr: e.addr(), AllowedIPs: prefixes("10.2.0.0/16", "fd02::/32")})
	warm(t, h, e, "10.1.0.1", "10.2.0.1")
	return h, e
}

// warm makes a session from h to e: before there is one, only a few packets
// may wait for it.
func warm(t testing.TB, h, e *end, src, dst string) {
	t.Helper()
	h.seal(udp(src, dst, []byte("warm")))
	e.collect(func(*packet.Packet) bool { return false })
}

// collect opens batches and calls each for every packet, until it returns
// false or nothing came for some seconds.
func (e *end) collect(each func(pk *packet.Packet) bool) {
	e.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := packet.NewBatch()
		for {
			if err := e.Open(b); err != nil {
				return
			}
			for i := range b.Packets {
				if !each(&b.Packets[i]) {
					return
				}
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		e.t.Errorf("packets are missing: stats here %+v", e.Stats())
		e.stop() // ends Open
		<-done
	}
}

// drain opens batches in the background until the tunnel ends and counts the
// packets per peer into got.
func (e *end) drain(each func(pk *packet.Packet)) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := packet.NewBatch()
		for e.Open(b) == nil {
			for i := range b.Packets {
				if each != nil {
					each(&b.Packets[i])
				}
			}
		}
	}()
	return func() { <-done }
}

// seal sends packets, one batch.
func (e *end) seal(data ...[]byte) {
	b := packet.NewBatch()
	for _, d := range data {
		if b.Append(d) == nil {
			e.t.Fatal("packet does not fit the batch")
		}
	}
	e.Seal(b)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timed out: ", what)
		}
	}
}

// ipHeader returns an IP header with n bytes to follow.
func ipHeader(src, dst string, proto uint8, n int) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		b := make([]byte, 20)
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(20+n))
		b[6] = 0x40
		b[8], b[9] = 64, proto
		copy(b[12:], s.AsSlice())
		copy(b[16:], d.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^packet.Checksum(b, 0))
		return b
	}
	b := make([]byte, 40)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	b[6], b[7] = proto, 64
	copy(b[8:], s.AsSlice())
	copy(b[24:], d.AsSlice())
	return b
}

func pseudo(ip []byte, proto uint8, n int) uint16 {
	var sum uint16
	if ip[0]>>4 == 4 {
		sum = packet.Checksum(ip[12:20], 0)
	} else {
		sum = packet.Checksum(ip[8:40], 0)
	}
	return packet.Checksum([]byte{0, proto, byte(n >> 8), byte(n)}, sum)
}

// udp returns a datagram with a complete checksum.
func udp(src, dst string, payload []byte) []byte {
	n := 8 + len(payload)
	b := ipHeader(src, dst, 17, n)
	l4 := len(b)
	b = binary.BigEndian.AppendUint16(b, 4000)
	b = binary.BigEndian.AppendUint16(b, 5000)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[l4+6:], ^packet.Checksum(b[l4:], pseudo(b, 17, n)))
	return b
}

// tcp appends a TCP packet with a partial checksum to b: a super-packet if mss
// is not 0.
func tcp(b *packet.Batch, src, dst string, seq uint32, payload []byte, mss int) *packet.Packet {
	n := 20 + len(payload)
	d := ipHeader(src, dst, 6, n)
	l4 := len(d)
	d = binary.BigEndian.AppendUint16(d, 4000)
	d = binary.BigEndian.AppendUint16(d, 5000)
	d = binary.BigEndian.AppendUint32(d, seq)
	d = binary.BigEndian.AppendUint32(d, 1)
	d = append(d, 0x50, packet.ACK|packet.PSH, 0xff, 0xff)
	d = binary.BigEndian.AppendUint16(d, pseudo(d, 6, n))
	d = append(d, 0, 0)
	pk := b.Append(append(d, payload...))
	if pk == nil {
		return nil
	}
	pk.GSO = packet.GSO{Partial: true, HdrLen: uint16(l4 + 20), CsumStart: uint16(l4), CsumOffset: 16}
	if mss > 0 {
		pk.GSO.Size = uint16(mss)
		pk.GSO.Type = packet.GSOTCP4
		if d[0]>>4 == 6 {
			pk.GSO.Type = packet.GSOTCP6
		}
	}
	return pk
}

// payloadOf checks a packet's headers and checksums and returns its transport
// payload and, for TCP, its sequence number.
func payloadOf(t testing.TB, pk *packet.Packet) (payload []byte, seq uint32) {
	t.Helper()
	var p packet.Parsed
	if r := p.Parse(pk); r != packet.OK {
		t.Fatalf("packet came out broken: %v: %x", r, pk.Data[:min(60, len(pk.Data))])
	}
	if r := p.VerifyChecksum(); r != packet.OK {
		t.Fatalf("packet came out with a wrong checksum: %x", pk.Data[:min(60, len(pk.Data))])
	}
	return p.Data[p.Payload:], p.Seq
}

// openedNothing fails if a packet is in e's ring, now or soon.
func openedNothing(t testing.TB, e *end) {
	t.Helper()
	time.Sleep(50 * time.Millisecond)
	e.rx.mu.Lock()
	defer e.rx.mu.Unlock()
	if n := len(e.rx.batches[e.rx.head].Packets); n != 0 {
		t.Fatalf("%d packets came through", n)
	}
}

func mustAddrPort(t testing.TB, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
