package netlab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// Frame is one captured Ethernet frame.
type Frame struct {
	At       time.Time
	Outgoing bool // sent by the box that captures
	Data     []byte
}

// Capture records every frame of an interface with the kernel's packet socket:
// a referee that shares no code with the engine.
type Capture struct {
	f    *os.File
	done chan struct{}

	mu     sync.Mutex
	frames []Frame // guarded by mu; at most captureMax
	lost   int     // guarded by mu; beyond captureMax
}

// captureMax bounds a capture's frames.
const captureMax = 200_000

// Capture starts a capture on an interface of the box. Stop ends it.
func (b *Box) Capture(link string) (*Capture, error) {
	fd := -1
	err := b.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		// Room for bursts: the default of 208 KiB holds few super-packets.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("capture on %s of %s: %w", link, b.Name, err)
	}
	c := &Capture{f: os.NewFile(uintptr(fd), "capture "+link), done: make(chan struct{})}
	go c.run()
	return c, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) run() {
	defer close(c.done)
	raw, err := c.f.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 1<<17)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if rerr != nil {
			if errors.Is(rerr, unix.ENETDOWN) || errors.Is(rerr, unix.EINTR) {
				continue
			}
			return
		}
		f := Frame{At: time.Now(), Data: append([]byte(nil), buf[:n]...)}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok {
			f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
		}
		c.mu.Lock()
		if len(c.frames) < captureMax {
			c.frames = append(c.frames, f)
		} else {
			c.lost++
		}
		c.mu.Unlock()
	}
}

// Stop ends the capture. Frames stay readable. It may be called again.
func (c *Capture) Stop() error {
	err := c.f.Close()
	<-c.done
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Frames returns what was captured so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Frame(nil), c.frames...)
}

// Lost is how many frames did not fit.
func (c *Capture) Lost() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// Match picks frames; a zero field matches everything.
type Match struct {
	Src, Dst netip.Prefix
	Protocol layers.IPProtocol // of the innermost IP header; 0: any
	Port     uint16            // TCP or UDP, source or destination
	Outgoing bool              // only frames that the capturing box sent
	ARP      bool              // only ARP; then Src and Dst are the sender's and target's addresses
	IP       bool              // only IPv4 and IPv6
	Has      []byte            // the frame contains these bytes
}

// Count is how many captured frames match.
func (c *Capture) Count(m Match) int {
	n := 0
	for _, f := range c.Frames() {
		if m.matches(f) {
			n++
		}
	}
	return n
}

// Wait waits until n frames match, or fails after the time given.
func (c *Capture) Wait(m Match, n int, within time.Duration) error {
	end := time.Now().Add(within)
	for {
		got := c.Count(m)
		if got >= n {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d frames match, want %d", got, n)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (m Match) matches(f Frame) bool {
	if m.Outgoing && !f.Outgoing {
		return false
	}
	if len(m.Has) > 0 && !contains(f.Data, m.Has) {
		return false
	}
	p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
	if m.ARP {
		a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && inPrefix(m.Src, a.SourceProtAddress) && inPrefix(m.Dst, a.DstProtAddress)
	}
	if !m.IP && !m.Src.IsValid() && !m.Dst.IsValid() && m.Protocol == 0 && m.Port == 0 {
		return true
	}
	var src, dst net.IP
	var proto layers.IPProtocol
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
		src, dst, proto = ip.SrcIP, ip.DstIP, ip.Protocol
	} else if ip, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6); ok {
		src, dst, proto = ip.SrcIP, ip.DstIP, ip.NextHeader
		if _, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
			proto = layers.IPProtocolICMPv6
		}
	} else {
		return false
	}
	if !inPrefix(m.Src, src) || !inPrefix(m.Dst, dst) || (m.Protocol != 0 && m.Protocol != proto) {
		return false
	}
	return m.Port == 0 || hasPort(p, m.Port)
}

func hasPort(p gopacket.Packet, port uint16) bool {
	if t, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
		return uint16(t.SrcPort) == port || uint16(t.DstPort) == port
	}
	if u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok {
		return uint16(u.SrcPort) == port || uint16(u.DstPort) == port
	}
	return false
}

func inPrefix(p netip.Prefix, b []byte) bool {
	if !p.IsValid() {
		return true
	}
	a, ok := netip.AddrFromSlice(b)
	return ok && p.Contains(a.Unmap())
}

func contains(b, part []byte) bool {
	for i := 0; i+len(part) <= len(b); i++ {
		if string(b[i:i+len(part)]) == string(part) {
			return true
		}
	}
	return false
}

// WritePcap writes what was captured in the classic pcap format.
func (c *Capture) WritePcap(w io.Writer) error {
	p := pcapgo.NewWriter(w)
	if err := p.WriteFileHeader(1<<18, layers.LinkTypeEthernet); err != nil {
		return err
	}
	for _, f := range c.Frames() {
		ci := gopacket.CaptureInfo{Timestamp: f.At, CaptureLength: len(f.Data), Length: len(f.Data)}
		if err := p.WritePacket(ci, f.Data); err != nil {
			return err
		}
	}
	return nil
}
