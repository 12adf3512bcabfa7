//go:build netns && linux

package netlab

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Reexec()
	if len(os.Args) == 3 && os.Args[1] == "userns-child" {
		if err := userNamespaceChild(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func newLab(t *testing.T, cfg Config) *Lab {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
			t.Errorf("the lab's directory is left behind: %v", err)
		}
	})
	return l
}

// reach asks whether a TCP connection from a to (b, addr) carries data.
func reach(t *testing.T, a, b *Box, addr netip.Addr) error {
	t.Helper()
	ln, err := b.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return err
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	defer func() { ln.Close(); <-done }()
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	c, err := a.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	b5 := make([]byte, 5)
	_, err = io.ReadFull(c, b5)
	return err
}

func TestEveryPathOfTheLabCarriesTraffic(t *testing.T) {
	for _, profile := range []Profile{L2, Cloud} {
		for _, egresses := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/%d", profile, egresses), func(t *testing.T) {
				l := newLab(t, Config{Tasks: 2, Servers: 2, Egresses: egresses, Profile: profile, V6: true})
				for _, p := range []struct {
					name string
					a, b *Box
					to   netip.Addr
				}{
					{"client to task", l.Prov, l.Tasks[1], l.Tasks[1].Addr4},
					{"client to task, IPv6", l.Prov, l.Tasks[1], l.Tasks[1].Addr6},
					{"task to client", l.Tasks[0], l.Prov, Client4},
					{"task to task", l.Tasks[0], l.Tasks[1], l.Tasks[1].Addr4},
					{"host to egress", l.Host, l.Egress[egresses-1], l.Egress[egresses-1].Addr4},
					{"host to egress, IPv6", l.Host, l.Egress[egresses-1], l.Egress[egresses-1].Addr6},
					{"egress to server", l.Egress[egresses-1], l.Servers[1], l.Servers[1].Addr4},
					{"egress to server, IPv6", l.Egress[egresses-1], l.Servers[1], l.Servers[1].Addr6},
					{"server to far", l.Servers[0], l.Subnet, Far4},
				} {
					if err := reach(t, p.a, p.b, p.to); err != nil {
						t.Errorf("%s: %v", p.name, err)
					}
				}
				err := reach(t, l.Egress[0], l.Host, l.Host.Addr4)
				if (err == nil) != (profile == L2) {
					t.Errorf("egress to host: got %v, but only the cloud's firewall shall refuse it", err)
				}
				if profile == Cloud {
					if n, err := l.FirewallDrops(); err != nil || n == 0 {
						t.Errorf("firewall drops: got %d, %v, want some", n, err)
					}
				}
			})
		}
	}
}

// In a cloud an address works only where it was bound, and the program that an
// exec claim calls binds it.
func TestCloudAddressWorksOnlyAfterTheClaim(t *testing.T) {
	l := newLab(t, Config{Egresses: 2, Profile: Cloud, V6: true})
	for _, a := range []netip.Addr{netip.MustParseAddr("10.0.1.50"), netip.MustParseAddr("fd00:1::50")} {
		for _, e := range l.Egress { // a box that owns it plays the endpoint
			if err := e.Conn.AddAddr(EgressLink, netip.PrefixFrom(a, a.BitLen())); err != nil {
				t.Fatal(err)
			}
		}
		try := func(want int) {
			t.Helper()
			for i, e := range l.Egress {
				err := reach(t, l.Servers[0], e, a)
				if (err == nil) != (i == want) {
					t.Errorf("%s at egress %d: got %v, want bound at %d", a, i+1, err, want)
				}
			}
		}
		try(-1)
		prog := make([]string, 2)
		for i := range prog {
			var err error
			if prog[i], err = l.ClaimProgram(i); err != nil {
				t.Fatal(err)
			}
		}
		run := func(i int, verb string) error {
			out, err := exec.Command(prog[i], verb, a.String(), "7").CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
		if err := run(0, "claim"); err != nil {
			t.Fatal(err)
		}
		if err := run(0, "check"); err != nil {
			t.Error(err)
		}
		if err := run(1, "check"); err == nil {
			t.Error("check at the egress that does not have the address: got success")
		}
		try(0)
		if err := run(1, "claim"); err != nil {
			t.Fatal(err)
		}
		try(1)
		if err := run(1, "release"); err != nil {
			t.Fatal(err)
		}
		try(-1)
	}
}

func TestCaptureSeesBothDirections(t *testing.T) {
	l := newLab(t, Config{V6: true, NoOffloads: true})
	c, err := l.Servers[0].Capture(ServerLink)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	if err := reach(t, l.Egress[0], l.Servers[0], l.Servers[0].Addr4); err != nil {
		t.Fatal(err)
	}
	in := Match{Src: netip.PrefixFrom(EgressSubnet4(0), 32), Protocol: layers.IPProtocolTCP, Has: []byte("hello")}
	if err := c.Wait(in, 1, time.Second); err != nil {
		t.Error(err)
	}
	out := Match{Dst: netip.PrefixFrom(EgressSubnet4(0), 32), Outgoing: true, Has: []byte("hello")}
	if err := c.Wait(out, 1, time.Second); err != nil {
		t.Error(err)
	}
	if n := c.Count(Match{ARP: true}); n == 0 {
		t.Error("no ARP was captured, though the boxes had to resolve each other")
	}
	if n := c.Count(Match{Port: 9}); n != 0 {
		t.Errorf("frames of a port nobody used: got %d", n)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "x.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.WritePcap(f); err != nil {
		t.Fatal(err)
	}
	if st, _ := f.Stat(); st.Size() < 24+16*int64(len(c.Frames())) {
		t.Errorf("pcap of %d frames has %d bytes", len(c.Frames()), st.Size())
	}
	off, err := l.Servers[0].Conn.GetOffloads(ServerLink)
	if err != nil || off.TSO || off.GSO || off.GRO || off.TxChecksum {
		t.Errorf("offloads: got %+v, %v, want all off", off, err)
	}
}

// userNamespaceChild runs as root of a user namespace of an unprivileged user.
func userNamespaceChild(dir string) error {
	l, err := New(Config{V6: true, RunDir: dir})
	if err != nil {
		return err
	}
	defer l.Close()
	ln, err := l.Servers[0].Listen("tcp", "10.0.1.20:80")
	if err != nil {
		return err
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := l.Egress[0].Dial(ctx, "tcp", "10.0.1.20:80")
	if err != nil {
		return err
	}
	return c.Close()
}

func TestLabInUserNamespaceNeedsNoRoot(t *testing.T) {
	dir := t.TempDir()
	cmd, err := UserNamespaceCommand(context.Background(), dir, "userns-child", dir)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("lab in a user namespace: %v\n%s", err, out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left outside the namespace: %v, %v", left, err)
	}
}

func TestHalfBuiltLabIsRemoved(t *testing.T) {
	dir := t.TempDir()
	_, err := New(Config{RunDir: dir, Congestion: "no-such-algorithm"})
	if err == nil {
		t.Fatal("an unknown congestion control was accepted")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
