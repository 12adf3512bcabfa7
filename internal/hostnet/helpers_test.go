//go:build netns && linux

package hostnet_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"golang.org/x/sys/unix"
)

// echo sends one ICMP echo request and waits for its reply.
func echo(from *netlab.Box, to netip.Addr) error {
	network, typ, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, typ, reply = "ip6:ipv6-icmp", 128, 129
	}
	return from.Do(func() error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		m := []byte{typ, 0, 0, 0, 0x53, 0x50, 0, 1}
		if to.Is4() {
			sum := ^(uint16(typ)<<8 + 0x5350 + 1)
			m[2], m[3] = byte(sum>>8), byte(sum)
		}
		if _, err := c.Write(m); err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(time.Second))
		b := make([]byte, 256)
		for {
			n, err := c.Read(b)
			if err != nil {
				return err
			}
			if n > 20 && b[0]>>4 == 4 { // an IPv4 raw socket shows the header
				copy(b, b[20:n])
			}
			if n > 0 && b[0] == reply {
				return nil
			}
		}
	})
}

// openTUN opens a plain TUN in a namespace; what the kernel sends into it is
// read by the test.
func openTUN(t *testing.T, ns *hostnet.NS, name string) *os.File {
	t.Helper()
	f, err := plainTUN(ns, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func plainTUN(ns *hostnet.NS, name string) (*os.File, error) {
	fd := -1
	err := ns.Do(func() error {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		return nil, fmt.Errorf("open TUN: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// settle waits a moment for a state to be as it was.
func settle(t *testing.T, what, want string, state func() string) {
	t.Helper()
	got := ""
	for try := range 20 {
		if got = state(); got == want {
			return
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	t.Errorf("%s changed something:\n%s", what, diff(want, got))
}

// dump is the state of a namespace as the system's own tools show it: rules,
// routes, addresses, and the packet filter without counters.
func dump(t *testing.T, b *netlab.Box) string {
	t.Helper()
	var out strings.Builder
	for _, args := range []string{"ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"ip -o addr", "nft -s -t list ruleset"} {
		var o []byte
		err := b.Do(func() (err error) {
			f := strings.Fields(args)
			o, err = exec.Command(f[0], f[1:]...).CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v: %s", args, err, o)
		}
		for _, line := range strings.Split(string(o), "\n") {
			fmt.Fprintf(&out, "%s: %s\n", args, line)
		}
	}
	return out.String()
}

func diff(a, b string) string {
	count := map[string]int{}
	for _, l := range strings.Split(a, "\n") {
		count[l]--
	}
	for _, l := range strings.Split(b, "\n") {
		count[l]++
	}
	var out strings.Builder
	for l, n := range count {
		if n != 0 {
			fmt.Fprintf(&out, "%+d %s\n", n, l)
		}
	}
	return out.String()
}
