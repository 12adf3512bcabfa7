//go:build netns && linux

package device

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

func TestPersistentTUNComesBack(t *testing.T) {
	s := newSpace(t)
	c := TUNConfig{Name: "keep0", Persistence: Persistent}
	first := s.tun(c, 1)
	if _, err := s.open(c); !errors.Is(err, ErrBusy) {
		t.Errorf("a second open: %v, want ErrBusy", err)
	}
	first.Close()
	again, err := s.open(c)
	if err != nil {
		t.Fatalf("attach again: %v", err)
	}
	// Addresses are still there, and so must the offloads be: bulk TCP arrives
	// as super-packets.
	g := newGroup(t, Config{})
	add(t, g, 1, again)
	if p := ask(t, s, g); p.GSO.Type != packet.GSOUDP || p.GSO.Size != 1000 || len(p.Data) != 28+5000 {
		t.Errorf("after attaching again: %+v, %d bytes: want a super-packet of 5 datagrams", p.GSO, len(p.Data))
	}
	if err := again.SetPersist(Ephemeral); err != nil {
		t.Error(err)
	}
	g.Close()
	s.ip("link show dev lo")
	s.do(func() {
		if _, err := net.InterfaceByName("keep0"); err == nil {
			t.Error("keep0 is still there after SetPersist(Ephemeral) and Close")
		}
	})
}

func setSegment(t testing.TB, conn *net.UDPConn, size int) {
	t.Helper()
	rc, err := conn.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	_ = rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Errorf("UDP_SEGMENT: %v", err)
	}
}

// sendSuper sends n datagrams of size bytes with one system call (UDP_SEGMENT).
func sendSuper(t *testing.T, conn *net.UDPConn, to string, n, size int) {
	t.Helper()
	setSegment(t, conn, size)
	if _, err := conn.WriteToUDPAddrPort(make([]byte, n*size), netip.MustParseAddrPort(to)); err != nil {
		t.Error(err)
	}
}

// ask makes the namespace send a train of 5 datagrams and returns the first
// that arrives. It sends until one does: the kernel gives an interface that was
// detached its queue back in its own time.
func ask(t *testing.T, s *space, g *Group) packet.Packet {
	t.Helper()
	var conn net.PacketConn
	var err error
	s.do(func() { conn, err = net.ListenPacket("udp4", "10.9.0.1:0") })
	if err != nil {
		t.Fatalf("the address is gone: %v", err)
	}
	defer conn.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-stopped }()
	go func() {
		defer close(stopped)
		for {
			sendSuper(t, conn.(*net.UDPConn), "10.9.0.2:9", 5, 1000)
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for b := NewBatch(); ; {
		if err := g.Read(b); err != nil {
			t.Fatal(err)
		}
		for _, p := range b.Packets {
			// The kernel also sends what it likes.
			if p.Data[0]>>4 == 4 && p.Data[9] == packet.ProtoUDP {
				p.Data = append([]byte(nil), p.Data...)
				return p
			}
		}
	}
}

func TestOffloadsAsAsked(t *testing.T) {
	for _, tt := range []struct {
		offload Offload
		want    int // datagrams in the first read
	}{{OffloadAll, 5}, {OffloadTCP, 1}, {OffloadNone, 1}} {
		s := newSpace(t)
		tun := s.tun(TUNConfig{Name: "spill0", Offload: tt.offload}, 1)
		g := newGroup(t, Config{})
		add(t, g, 1, tun)
		p := ask(t, s, g)
		if n := p.GSO.Segments(len(p.Data) - 28); n != tt.want {
			t.Errorf("offload %d: %d datagrams in one read, want %d", tt.offload, n, tt.want)
		}
		if tt.offload == OffloadNone && p.GSO.Partial {
			t.Error("OffloadNone: the checksum is not complete")
		}
	}
}

func TestOpenTUNErrors(t *testing.T) {
	s := newSpace(t)
	for _, c := range []TUNConfig{{}, {Name: "a/b"}, {Name: "sixteen-bytes-xx"}, {Name: "x", Offload: 9}} {
		if tun, err := s.open(c); err == nil {
			tun.Close()
			t.Errorf("%+v was accepted", c)
		}
	}
	s.ip("tuntap add dev tap0 mode tap")
	if _, err := s.open(TUNConfig{Name: "tap0"}); !errors.Is(err, ErrNotTUN) || !strings.Contains(err.Error(), "ip link del") {
		t.Errorf("a TAP of that name: %v, want ErrNotTUN and the way out", err)
	}
	numbered, err := s.open(TUNConfig{Name: "spill%d"})
	if err != nil || numbered.Name() != "spill0" {
		t.Errorf("spill%%d: %v", err)
	}
	numbered.Close()
	// The thread gives up its capabilities; it ends with the test.
	s.do(func() {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			t.Errorf("capset: %v", err)
			return
		}
		if _, err := OpenTUN(TUNConfig{Name: "x"}); !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("without capabilities: %v, want ErrPermission naming CAP_NET_ADMIN", err)
		}
	})
}

func TestMissingTunDevice(t *testing.T) {
	s := newSpace(t)
	// A mount namespace of the thread's own with an empty /dev/net.
	s.do(func() {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("mount: %v", err)
			return
		}
		if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil {
			t.Errorf("mount: %v", err)
			return
		}
		if _, err := OpenTUN(TUNConfig{Name: "x"}); !errors.Is(err, ErrNoTUN) || !strings.Contains(err.Error(), "--device") {
			t.Errorf("without /dev/net/tun: %v, want ErrNoTUN and the way out", err)
		}
	})
}

func TestFromFD(t *testing.T) {
	s := newSpace(t)
	raw := func(flags uint16) int {
		var fd int
		s.do(func() {
			var err error
			if fd, err = unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
			ifr, err := unix.NewIfreq("x%d")
			if err != nil {
				t.Fatal(err)
			}
			ifr.SetUint16(flags)
			if err := ioctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
				t.Fatal(err)
			}
		})
		return fd
	}
	for _, tt := range []struct {
		name  string
		flags uint16
		front int
		ok    bool
	}{
		{"virtio header", unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR, vnetLen, true},
		{"plain", unix.IFF_TUN | unix.IFF_NO_PI, 0, true},
		{"packet information", unix.IFF_TUN, 0, false},
		{"TAP", unix.IFF_TAP | unix.IFF_NO_PI, 0, false},
	} {
		fd := raw(tt.flags)
		tun, err := FromFD(fd)
		if !tt.ok {
			if !errors.Is(err, ErrNotTUN) {
				t.Errorf("%s: %v, want ErrNotTUN", tt.name, err)
			}
			unix.Close(fd)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			unix.Close(fd)
			continue
		}
		if tun.front != tt.front || tun.takes(packet.GSOTCP4) != (tt.front > 0) {
			t.Errorf("%s: header of %d bytes, want %d", tt.name, tun.front, tt.front)
		}
		f, err := tun.File()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		f.Close()
		tun.Close()
		if _, err := tun.File(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("File after Close: %v, want os.ErrClosed", err)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := FromFD(int(null.Fd())); !errors.Is(err, ErrNotTUN) {
		t.Errorf("/dev/null: %v, want ErrNotTUN", err)
	}
}

func TestInterfaceThatGoesAway(t *testing.T) {
	for _, how := range []string{"ip link del", "end of its namespace"} {
		t.Run(how, func(t *testing.T) {
			s, task := newSpace(t), newSpace(t)
			tun, err := s.open(TUNConfig{Name: "spill0"})
			if err != nil {
				t.Fatal(err)
			}
			other, err := s.open(TUNConfig{Name: "spill1"})
			if err != nil {
				t.Fatal(err)
			}
			type report struct {
				port uint32
				err  error
			}
			down := make(chan report, 2)
			g := newGroup(t, Config{OnPortDown: func(port uint32, err error) { down <- report{port, err} }})
			add(t, g, 1, tun)
			add(t, g, 2, other)
			done := make(chan error)
			go func() {
				b := NewBatch()
				for {
					if err := g.Read(b); err != nil {
						done <- err
						return
					}
				}
			}()
			if how == "ip link del" {
				s.ip("link del spill0")
			} else {
				s.ip("link set spill0 netns " + itoa(task.tid))
				task.leave()
			}
			r := <-down
			if r.port != 1 || !(errors.Is(r.err, unix.EBADFD) || errors.Is(r.err, unix.EFAULT)) {
				t.Errorf("port %d went down with %v", r.port, r.err)
			}
			if _, ok := g.Stats(2); !ok {
				t.Error("the other port went down too")
			}
			// Writing to it is a counted drop.
			b := NewBatch()
			pkt.OfPacket(b, packet.Packet{Data: pkt.UDP(client4, server4, nil), Port: 1})
			g.Write(b)
			if g.NoRoute() != 1 {
				t.Error("a packet to the interface that is gone was not counted")
			}
			g.Close()
			if err := <-done; !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read ended with %v", err)
			}
		})
	}
}

func TestWriteNoticesThatTheInterfaceIsGone(t *testing.T) {
	s := newSpace(t)
	tun, err := s.open(TUNConfig{Name: "spill0"})
	if err != nil {
		t.Fatal(err)
	}
	down := make(chan error, 1)
	g := newGroup(t, Config{OnPortDown: func(_ uint32, err error) { down <- err }})
	add(t, g, 1, tun)
	b := NewBatch()
	pkt.OfPacket(b, packet.Packet{Data: pkt.UDP(client4, server4, nil), Port: 1})
	g.Write(b) // it is not up: a drop, and no reason to give it up
	if st, ok := g.Stats(1); !ok || st.Drops[packet.DeviceError] != 1 {
		t.Errorf("write to an interface that is down: %+v, port there: %v", st.Drops, ok)
	}
	s.ip("link del spill0")
	g.Write(b)
	if err := <-down; !errors.Is(err, unix.EBADFD) {
		t.Errorf("%v, want EBADFD", err)
	}
}

func TestSuperPacketTheKernelRefuses(t *testing.T) {
	s := newSpace(t)
	tun := s.tun(TUNConfig{Name: "spill0"}, 1)
	g := newGroup(t, Config{})
	add(t, g, 1, tun)
	src, dst := netip.MustParseAddrPort("10.9.0.2:1"), netip.MustParseAddrPort("10.9.0.1:2")
	// More datagrams than UDP_MAX_SEGMENTS.
	p := pkt.Super(pkt.UDP(src, dst, make([]byte, 200*8)), 8)
	p.Port = 1
	b := NewBatch()
	pkt.OfPacket(b, p)
	g.Write(b)
	st, _ := g.Stats(1)
	if st.OffloadFallbacks != 1 || st.WriteSegments != 200 || st.WritePackets != 200 || st.Drops != [packet.NumReasons]uint64{} {
		t.Errorf("%+v: want 200 single datagrams after one refusal", st)
	}
	if !tun.takes(packet.GSOUDP) {
		t.Error("one odd super-packet switched the offload off for everybody")
	}
}
