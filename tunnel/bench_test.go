package tunnel

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// The ladder: a pair of plain wireguard-go devices whose TUN cuts super-packets
// in Read, as NativeTun does, and only counts in Write; then a pair of Stocks
// fed with the same super-packets. What the second costs more is the seam.
// Both are held to window packets between sender and receiver, so that the UDP
// socket loses nothing.
const window = 1536

const (
	benchMSS   = 1360
	benchSuper = 45 * benchMSS
)

// plainTUN is the simplest TUN that makes and takes bulk traffic.
type plainTUN struct {
	super    *packet.Batch // one packet, sent again and again; nil sends nothing
	send     chan int      // super-packets to send
	got      atomic.Int64
	seg      packet.Segmenter
	cutting  bool
	closed   chan struct{}
	events   chan tun.Event
	onPacket func()
}

func newPlainTUN() *plainTUN {
	return &plainTUN{send: make(chan int, 1024), closed: make(chan struct{}), events: make(chan tun.Event)}
}

func (p *plainTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if !p.cutting {
		select {
		case <-p.send:
		case <-p.closed:
			return 0, os.ErrClosed
		}
		p.seg.Start(&p.super.Packets[0])
		p.cutting = true
	}
	n := 0
	for n < len(bufs) && p.cutting {
		sizes[n], p.cutting = p.seg.Next(bufs[n][offset : len(bufs[n])-64])
		n++
	}
	return n, nil
}

func (p *plainTUN) Write(bufs [][]byte, offset int) (int, error) {
	p.got.Add(int64(len(bufs)))
	if p.onPacket != nil {
		p.onPacket()
	}
	return len(bufs), nil
}

func (p *plainTUN) File() *os.File           { return nil }
func (p *plainTUN) MTU() (int, error)        { return 1420, nil }
func (p *plainTUN) Name() (string, error)    { return "plain", nil }
func (p *plainTUN) Events() <-chan tun.Event { return p.events }
func (p *plainTUN) BatchSize() int           { return 128 }
func (p *plainTUN) Close() error {
	close(p.closed)
	close(p.events)
	return nil
}

// plainDevice is a wireguard-go device configured by UAPI only.
func plainDevice(t testing.TB, d tun.Device, k PrivateKey) (dev *device.Device, port string) {
	t.Helper()
	dev = device.NewDevice(d, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	if err := dev.IpcSet("private_key=" + hex.EncodeToString(k[:]) + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	text, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if p, ok := strings.CutPrefix(line, "listen_port="); ok {
			port = strings.TrimSpace(p)
		}
	}
	t.Cleanup(dev.Close)
	return dev, port
}

func uapiPeer(t testing.TB, dev *device.Device, k Key, port string, allowed ...string) {
	t.Helper()
	text := "public_key=" + k.hex() + "\n"
	if port != "" {
		text += "endpoint=127.0.0.1:" + port + "\n"
	}
	for _, a := range allowed {
		text += "allowed_ip=" + a + "\n"
	}
	if err := dev.IpcSet(text); err != nil {
		t.Fatal(err)
	}
}

func plainPair(t testing.TB) (a, b *plainTUN) {
	a, b = newPlainTUN(), newPlainTUN()
	ka, kb := testKey(t), testKey(t)
	da, _ := plainDevice(t, a, ka)
	db, port := plainDevice(t, b, kb)
	uapiPeer(t, db, ka.Public(), "", "10.1.0.0/16")
	uapiPeer(t, da, kb.Public(), port, "10.2.0.0/16")
	return a, b
}

func superBatch(src, dst string, n int) *packet.Batch {
	b := packet.NewBatch()
	tcp(b, src, dst, 1, make([]byte, n), benchMSS)
	return b
}

func BenchmarkBulk(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		from, to := plainPair(b)
		from.super = superBatch("10.1.0.1", "10.2.0.1", benchSuper)
		bulk(b, func() { from.send <- 1 }, to.got.Load)
	})
	for _, supers := range []int{1, 4} {
		b.Run(fmt.Sprintf("stock/supers=%d", supers), func(b *testing.B) {
			host, egress := twoEnds(b, Config{}, Config{})
			var got atomic.Int64
			done := make(chan struct{})
			go func() {
				defer close(done)
				bt := packet.NewBatch()
				for egress.Open(bt) == nil {
					got.Add(int64(len(bt.Packets)))
				}
			}()
			super := superBatch("10.1.0.1", "10.2.0.1", benchSuper)
			bt := packet.NewBatch()
			filled := 0
			bulk(b, func() {
				pk := bt.Append(super.Packets[0].Data)
				pk.GSO = super.Packets[0].GSO
				if filled++; filled == supers {
					host.Seal(bt)
					filled = 0
				}
			}, got.Load)
			host.Seal(bt)
			reportGates(b, host, egress)
			egress.stop()
			<-done
		})
	}
}

func reportGates(b *testing.B, ends ...*end) {
	for _, e := range ends {
		for r, n := range e.Stats().Dropped {
			if n > 0 {
				b.Logf("dropped %d: %v", n, packet.Reason(r))
			}
		}
	}
}

// bulk sends b.N packets of benchMSS bytes in super-packets of 45.
func bulk(b *testing.B, send func(), got func() int64) {
	for got() == 0 { // the handshake
		send()
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	b.ReportAllocs()
	b.SetBytes(benchMSS)
	start := got()
	var sent int64
	cpu := cpuTime()
	b.ResetTimer()
	last, lastAt := int64(-1), time.Now()
	for n := int64(0); n < int64(b.N); n = got() - start {
		if sent-n < window {
			send()
			sent += 45
			continue
		}
		if n != last {
			last, lastAt = n, time.Now()
		} else if time.Since(lastAt) > 200*time.Millisecond {
			sent = n // lost by the socket
			lastAt = time.Now()
		}
		time.Sleep(20 * time.Microsecond)
	}
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(rssPeak())/(1<<20), "MB-peak-RSS")
}

// rssPeak returns the process's highest RSS in bytes, 0 if unknown.
func rssPeak() int64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

func BenchmarkRoundTrip(b *testing.B) {
	b.Run("plain", func(b *testing.B) {
		a, c := plainPair(b)
		a.super = packet.NewBatch()
		a.super.Append(udp("10.1.0.1", "10.2.0.1", make([]byte, 64)))
		c.super = packet.NewBatch()
		c.super.Append(udp("10.2.0.1", "10.1.0.1", make([]byte, 64)))
		c.onPacket = func() { c.send <- 1 }
		back := make(chan struct{}, 1024)
		a.onPacket = func() { back <- struct{}{} }
		a.send <- 1
		<-back
		cpu := cpuTime()
		b.ResetTimer()
		for range b.N {
			a.send <- 1
			<-back
		}
		b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
	})
	b.Run("stock", func(b *testing.B) {
		host, egress := twoEnds(b, Config{}, Config{})
		out, in := udp("10.1.0.1", "10.2.0.1", make([]byte, 64)), udp("10.2.0.1", "10.1.0.1", make([]byte, 64))
		done := make(chan struct{})
		go func() {
			defer close(done)
			bt := packet.NewBatch()
			for egress.Open(bt) == nil {
				bt.Reset()
				bt.Append(in)
				egress.Seal(bt)
			}
		}()
		bt := packet.NewBatch()
		b.ReportAllocs()
		cpu := cpuTime()
		b.ResetTimer()
		for range b.N {
			bt.Reset()
			bt.Append(out)
			host.Seal(bt)
			if err := host.Open(bt); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/op")
		egress.stop()
		<-done
	})
}
