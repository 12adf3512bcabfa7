package device

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
)

// wire is the kernel's side of a port in tests that need no privileges: one
// end of a socket pair that keeps message boundaries, as a TUN does. The
// group's side is the descriptor of an ordinary TUN.
type wire struct {
	t   testing.TB
	fd  int
	buf []byte
}

// newWire returns a TUN with a virtio-net header of front bytes (0 or vnetLen)
// and the other side of it.
func newWire(t testing.TB, front int) (*TUN, *wire) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	}
	tun := &TUN{name: "wire", front: front}
	tun.fd.fd = fds[0]
	tun.tso.Store(front > 0)
	tun.uso.Store(front > 0)
	w := &wire{t: t, fd: fds[1], buf: make([]byte, vnetLen+packet.MaxPacket+1)}
	t.Cleanup(func() {
		tun.Close()
		if w.fd >= 0 {
			unix.Close(w.fd)
		}
	})
	return tun, w
}

// hangUp makes the interface disappear.
func (w *wire) hangUp() {
	unix.Close(w.fd)
	w.fd = -1
}

// put makes the interface have something to read.
func (w *wire) put(hdr, data []byte) {
	w.t.Helper()
	if _, err := unix.Write(w.fd, append(append([]byte(nil), hdr...), data...)); err != nil {
		w.t.Fatalf("put a packet on the wire: %v", err)
	}
}

// get returns what the group wrote: the packets or super-packets as the kernel
// would see them.
func (w *wire) get(front int) []packet.Packet {
	w.t.Helper()
	var out []packet.Packet
	for {
		n, err := unix.Read(w.fd, w.buf)
		if err == unix.EAGAIN {
			return out
		}
		if err != nil || n <= front {
			w.t.Fatalf("take a packet off the wire: %d bytes, %v", n, err)
		}
		p := packet.Packet{Data: append([]byte(nil), w.buf[front:n]...)}
		if front > 0 {
			if r := decodeVnet(w.buf[:front], p.Data, &p.GSO); r != packet.OK {
				w.t.Fatalf("the kernel would refuse what was written: header %v of %d bytes: %v", w.buf[:front], n-front, r)
			}
		}
		out = append(out, p)
	}
}

// segments cuts packets into what goes over a wire.
func segments(t testing.TB, pkts []packet.Packet) [][]byte {
	t.Helper()
	var s packet.Segmenter
	var out [][]byte
	buf := make([]byte, packet.MaxPacket)
	for i := range pkts {
		if r := s.Start(&pkts[i]); r != packet.OK {
			t.Fatalf("segmenter: %v", r)
		}
		for more := true; more; {
			var n int
			n, more = s.Next(buf)
			out = append(out, append([]byte(nil), buf[:n]...))
		}
	}
	return out
}

// normal returns a copy of an IPv4 packet with DF without its identification,
// which says nothing (RFC 6864 section 4), and what depends on it; any other
// packet as it is.
func normal(b []byte) []byte {
	if len(b) < 20 || b[0]>>4 != 4 || b[6]&0x40 == 0 {
		return b
	}
	b = append([]byte(nil), b...)
	// The header checksum less the identification (RFC 1624).
	sum := uint32(^binary.BigEndian.Uint16(b[10:])) + uint32(^binary.BigEndian.Uint16(b[4:]))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		sum = 0
	}
	binary.BigEndian.PutUint16(b[10:], uint16(sum))
	b[4], b[5] = 0, 0
	return b
}

// newGroup returns a group that is closed at the end of the test.
func newGroup(t testing.TB, c Config) *Group {
	t.Helper()
	g, err := NewGroup(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Errorf("close the group: %v", err)
		}
	})
	return g
}

func add(t testing.TB, g *Group, num uint32, tun *TUN) {
	t.Helper()
	if err := g.Add(num, tun); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
