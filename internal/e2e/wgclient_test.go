//go:build netns && linux

package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
)

// wgQuick is what wg-quick(8) reads from a configuration.
type wgQuick struct {
	PrivateKey, PublicKey string
	Address, AllowedIPs   []netip.Prefix
	Endpoint              netip.AddrPort
	MTU                   int
}

// parseWGQuick reads a wg-quick configuration with one peer.
func parseWGQuick(text string) (c wgQuick, err error) {
	prefixes := func(v string) (out []netip.Prefix) {
		for _, s := range strings.Split(v, ",") {
			p, perr := netip.ParsePrefix(strings.TrimSpace(s))
			if perr != nil {
				err = perr
			}
			out = append(out, p)
		}
		return out
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == '[' {
			continue
		}
		key, v, ok := strings.Cut(line, " = ")
		if !ok {
			return c, fmt.Errorf("line %q", line)
		}
		switch key {
		case "PrivateKey":
			c.PrivateKey = v
		case "PublicKey":
			c.PublicKey = v
		case "Address":
			c.Address = prefixes(v)
		case "AllowedIPs":
			c.AllowedIPs = prefixes(v)
		case "Endpoint":
			c.Endpoint, err = netip.ParseAddrPort(v)
		case "MTU":
			_, err = fmt.Sscan(v, &c.MTU)
		default:
			return c, fmt.Errorf("key %q is not one that this client needs", key)
		}
		if err != nil {
			return c, err
		}
	}
	return c, err
}

// stockClient is wireguard-go's own program in a namespace of its own behind
// the lab's host.
type stockClient struct {
	box *netlab.Box
	dev string
}

// startClient runs the program and configures it by its own door (UAPI) and
// by ip(8)'s means, as wg-quick does.
func (w *world) startClient(c wgQuick) *stockClient {
	t := w.t
	t.Helper()
	program := filepath.Join(dir, "wireguard-go")
	check(t, build(program, "golang.zx2c4.com/wireguard"))
	path := filepath.Join(w.Dir, "client")
	ns := must(hostnet.CreateNS(path))(t)
	t.Cleanup(func() { check(t, ns.Close()); check(t, hostnet.DeleteNS(path)) })
	box := &netlab.Box{Name: "client", NS: ns}
	box.Conn = must(ns.Open())(t)
	t.Cleanup(func() { box.Conn.Close() })
	here, there := netip.MustParsePrefix("172.30.0.1/24"), netip.MustParsePrefix("172.30.0.2/24")
	check(t, w.Host.Conn.AddVeth("cli0", "up0", ns, 1500))
	check(t, w.Host.Conn.SetUp("cli0"))
	check(t, w.Host.Conn.AddAddr("cli0", here))
	check(t, box.Conn.SetUp("up0"))
	check(t, box.Conn.SetUp("lo"))
	check(t, box.Conn.AddAddr("up0", there))
	check(t, w.Egress[0].Conn.SetRoute(hostnet.Route{Dst: here.Masked(), Via: w.Host.Addr4, Dev: netlab.UnderLink}))
	// wg-quick keeps the server itself out of the tunnel by a mark; one
	// route does the same here.
	check(t, box.Conn.SetRoute(hostnet.Route{Dst: only(c.Endpoint.Addr()), Via: here.Addr(), Dev: "up0"}))

	s := &stockClient{box: box, dev: fmt.Sprintf("wg%d", os.Getpid())}
	cmd := exec.Command(program, "-f", s.dev)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	check(t, box.Do(cmd.Start))
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of the client:\n%s", log.String())
		}
	})
	key := func(b64 string) string {
		return hex.EncodeToString(must(base64.StdEncoding.DecodeString(b64))(t))
	}
	set := fmt.Sprintf("set=1\nprivate_key=%s\npublic_key=%s\nendpoint=%v\n", key(c.PrivateKey), key(c.PublicKey), c.Endpoint)
	for _, p := range c.AllowedIPs {
		set += fmt.Sprintf("allowed_ip=%v\n", p)
	}
	socket := filepath.Join("/var/run/wireguard", s.dev+".sock")
	eventually(t, 10*time.Second, func() error {
		uapi, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		defer uapi.Close()
		if _, err := io.WriteString(uapi, set+"\n"); err != nil {
			return err
		}
		b := make([]byte, 100)
		n, err := uapi.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), "errno=0") {
			return fmt.Errorf("the client says %q, %v", b[:n], err)
		}
		return nil
	})
	check(t, box.Conn.SetMTU(s.dev, c.MTU))
	for _, p := range c.Address {
		check(t, box.Conn.AddAddr(s.dev, p))
	}
	check(t, box.Conn.SetUp(s.dev))
	for _, p := range c.AllowedIPs {
		check(t, box.Conn.SetRoute(hostnet.Route{Dst: p, Dev: s.dev}))
	}
	return s
}

// TestS18_StockWireGuardClientIsATask: a stock client that knows nothing but
// what `spillway wg-config` printed is a task like any other, until it is
// removed.
func TestS18_StockWireGuardClientIsATask(t *testing.T) {
	w := begin(t, scene{Attach: true})
	check(t, w.reach(w.Tasks[0]))
	text := must(w.egress.Run(w.ctx, "wg-config", "--service", "web", "--name", "laptop"))(t)
	cfg := must(parseWGQuick(string(text)))(t)
	for _, p := range cfg.Address {
		if p.Bits() != p.Addr().BitLen() {
			t.Errorf("address %v, want one address only", p)
		}
	}
	c := w.startClient(cfg)
	for _, a := range families(w.server) {
		for _, network := range []string{"tcp", "udp"} {
			if err := w.echo(c.box, network, a); err != nil {
				t.Fatalf("%s to %v: %v", network, a, err)
			}
		}
		for _, verb := range []string{"put", "get"} {
			rate, err := w.move(c.box, a, verb, 64<<20, time.Minute)
			if err != nil {
				t.Fatalf("%s, server %v: %v", verb, a, err)
			}
			t.Logf("%s 64 MB, server %v: %.2f Gb/s", verb, a, rate/1e9)
		}
	}
	for _, a := range w.servers[0].SeenAny() {
		if a != w.out4 && a != w.out6 {
			t.Errorf("the servers saw %v, want only %v and %v", a, w.out4, w.out6)
		}
	}
	if err := w.refused(c.box, at(w.server.Addr4, 9999)); err != nil {
		t.Errorf("without a rule: %v", err)
	}
	if err := w.refused(c.box, at(w.tasks[0].Inner[0], 80)); err != nil {
		t.Errorf("another task: %v", err)
	}
	// The name is taken, and the key is told once.
	_, err := w.egress.Run(w.ctx, "wg-config", "--service", "web", "--name", "laptop")
	wantError(t, err, "laptop", "exists")

	// An open connection shows when the access ends.
	live := must(w.dial(c.box, "udp", at(w.server.Addr4, 7), time.Minute))(t)
	defer live.Close()
	check(t, say(live, "still here"))
	_, err = w.egress.Run(w.ctx, "wg-config", "--remove", "--name", "laptop")
	check(t, err)
	removed := time.Now()
	seen := w.capture(w.server, netlab.ServerLink)
	time.Sleep(time.Until(removed.Add(time.Second)))
	const late = "LATE-AFTER-REMOVAL"
	for range 5 {
		// The kernel may tell of an ICMP error: the datagram was tried.
		_, _ = live.Write([]byte(late))
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := w.dial(c.box, "tcp", at(w.server.Addr4, 7), time.Second); err == nil {
		t.Error("the removed client still opens connections")
	}
	if n := seen.Count(netlab.Match{Has: []byte(late)}); n > 0 {
		t.Errorf("%d datagrams of the removed client reached the subnet a second later", n)
	}
	check(t, w.reach(w.Tasks[0])) // others are not disturbed
}
