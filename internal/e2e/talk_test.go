//go:build netns && linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

// dial connects from a box within a few seconds. The connection has a
// deadline, so that no test hangs on it.
func (w *world) dial(box *netlab.Box, network, addr string, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(w.ctx, within)
	defer cancel()
	c, err := box.Dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(within))
}

// dialFrom dials from a source address; the zero one means any.
func (w *world) dialFrom(box *netlab.Box, network string, from netip.Addr, addr string, within time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: within}
	d.SetMultipathTCP(false)
	switch {
	case from.IsValid() && network == "tcp":
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	case from.IsValid():
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	err = box.Do(func() error {
		c, err = d.DialContext(w.ctx, network, addr)
		return err
	})
	return c, err
}

// say sends text over an open connection to an echo server and wants it back.
func say(c net.Conn, text string) error {
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("echo of %q: %w", text, err)
	}
	if !bytes.Equal(got, []byte(text)) {
		return fmt.Errorf("echo of %q is %q", text, got)
	}
	return nil
}

// echo shows that a box reaches an echo server. Datagrams may be lost on a
// busy machine: UDP gets three tries.
func (w *world) echo(box *netlab.Box, network string, a netip.Addr) error {
	c, err := w.dial(box, network, at(a, servers.EchoPort), 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if network == "tcp" {
		return say(c, "does it come back?")
	}
	for i := range 3 {
		if err = errors.Join(c.SetDeadline(time.Now().Add(2*time.Second)), say(c, fmt.Sprintf("try %d", i))); err == nil {
			return nil
		}
	}
	return err
}

// reach shows that a box reaches the first server by TCP and UDP in both
// families.
func (w *world) reach(box *netlab.Box) error {
	for _, a := range families(w.server) {
		for _, network := range []string{"tcp", "udp"} {
			if err := w.echo(box, network, a); err != nil {
				return fmt.Errorf("%s from %s to %v: %w", network, box.Name, a, err)
			}
		}
	}
	return nil
}

// silent wants no answer at all to a TCP connection.
func (w *world) silent(box *netlab.Box, addr string, within time.Duration) error {
	c, err := w.dial(box, "tcp", addr, within)
	var timeout net.Error
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%s accepts connections from %s", addr, box.Name)
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil
	}
	return fmt.Errorf("%s answers %s: %w", addr, box.Name, err)
}

// refused wants an ICMP refusal or an unreachable route, and at once.
func (w *world) refused(box *netlab.Box, addr string) error {
	begun := time.Now()
	c, err := w.dial(box, "tcp", addr, 3*time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is reached from %s", addr, box.Name)
	}
	for _, e := range []error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.ECONNREFUSED} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return fmt.Errorf("%s from %s after %v: %w, want a refusal", addr, box.Name, time.Since(begun), err)
}

// move sends ("put") or fetches ("get") n bytes through the bulk server and
// compares hashes. It returns bits per second.
func (w *world) move(box *netlab.Box, a netip.Addr, verb string, n int64, within time.Duration) (float64, error) {
	c, err := w.dial(box, "tcp", at(a, servers.BulkPort), within)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	f := servers.Put
	if verb == "get" {
		f = servers.Get
	}
	begun := time.Now()
	sent, got, err := f(c, n)
	if err == nil && sent != got {
		err = fmt.Errorf("%s of %d bytes: hash %s became %s", verb, n, sent, got)
	}
	return float64(n) * 8 / time.Since(begun).Seconds(), err
}
