package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
)

// udpBatch is how many datagrams go into one sendmmsg or recvmmsg.
const udpBatch = 64

// send sends datagrams of size bytes for the given time, evenly at rate a
// second, or as fast as the socket takes them if rate is 0.
func send(ctx context.Context, to string, rate, size int, duration time.Duration, out io.Writer) error {
	c, err := net.Dial("udp4", net.JoinHostPort(to, strconv.Itoa(udpPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.(*net.UDPConn).SetWriteBuffer(4 << 20); err != nil {
		return err
	}
	p := ipv4.NewPacketConn(c.(*net.UDPConn))
	payload := make([]byte, size)
	msgs := make([]ipv4.Message, udpBatch)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{payload}
	}
	sent, begin := int64(0), time.Now()
	for ctx.Err() == nil {
		n := udpBatch
		if rate > 0 {
			due := int64(time.Since(begin).Seconds()*float64(rate)) - sent
			if due <= 0 {
				time.Sleep(100 * time.Microsecond)
				continue
			}
			n = int(min(due, udpBatch))
		}
		k, err := p.WriteBatch(msgs[:n], 0)
		if k > 0 {
			sent += int64(k)
		}
		// The queue of the link is full, or an ICMP error arrived: neither
		// ends the blast.
		if err != nil && !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EHOSTUNREACH) {
			return err
		}
		if time.Since(begin) >= duration {
			break
		}
	}
	return report(out, sendReport{sent})
}

// quiet is how long the sink waits for a late datagram.
const quiet = 500 * time.Millisecond

// sink counts datagrams: those within duration of the first, and all until
// nothing comes any more.
func sink(_ context.Context, duration time.Duration, out io.Writer) error {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: udpPort})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	if _, err := io.WriteString(out, readyLine); err != nil {
		return err
	}
	p := ipv4.NewPacketConn(c)
	msgs := make([]ipv4.Message, udpBatch)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	var r sinkReport
	var first time.Time
	wait := 5 * time.Second // for the first
	end := time.Now().Add(duration + 20*time.Second)
	for time.Now().Before(end) {
		c.SetReadDeadline(time.Now().Add(wait))
		n, err := p.ReadBatch(msgs, 0)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			return err
		}
		now := time.Now()
		if first.IsZero() {
			first, wait = now, quiet
		}
		r.Received += int64(n)
		if now.Sub(first) <= duration {
			r.InTime += int64(n)
		}
	}
	return report(out, r)
}
