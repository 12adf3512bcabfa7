//go:build netns && linux

package e2e

import (
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

// strangers are destinations that a task must never reach by its primary: the
// private servers, and hosts of the provider's network and beyond.
func (w *world) strangers() []netip.Addr {
	return append(families(w.server), netlab.Client4, netlab.Client6, netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::9"))
}

// knock makes a task try TCP and UDP towards addresses outside, from any
// source and from the primary's own.
func (w *world) knock(task *netlab.Box) (tries int) {
	w.t.Helper()
	var wg sync.WaitGroup
	for _, dst := range w.strangers() {
		bound := task.Addr4
		if dst.Is6() {
			bound = task.Addr6
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []netip.Addr{{}, bound} {
				tries++
				wg.Add(1)
				go func() {
					defer wg.Done()
					c, err := w.dialFrom(task, network, from, at(dst, servers.EchoPort), 400*time.Millisecond)
					if err == nil {
						// Whether it leaves is what the capture tells.
						_, _ = c.Write([]byte("in clear?"))
						c.Close()
					}
				}()
			}
		}
	}
	wg.Wait()
	return tries
}

// inClear counts what a task sent by its primary that it should not: anything
// but neighbour resolution and packets to client, which asked for them.
func inClear(c *netlab.Capture, clients ...netip.Addr) (n int, first string) {
	for _, f := range c.Frames() {
		p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
		if f.Outgoing || p.NetworkLayer() == nil {
			continue
		}
		dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
		if i, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
			if t := i.TypeCode.Type(); t >= 130 && t <= 143 { // MLD and neighbour discovery
				continue
			}
		}
		answer := false
		for _, a := range clients {
			answer = answer || a == dst
		}
		if answer {
			continue
		}
		if n++; first == "" {
			first = p.String()
		}
	}
	return n, first
}

// serveHTTP answers on the task's wildcard address, as an application does.
func (w *world) serveHTTP(box *netlab.Box) (stop func()) {
	l := must(box.Listen("tcp", ":8080"))(w.t)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "the app saw %s", r.RemoteAddr)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends by Close
	}()
	return func() { srv.Close(); <-done }
}

// request asks the task's application from the provider's network, by the
// primary, in both families.
func (w *world) request(i int) error {
	for _, a := range families(w.Tasks[i]) {
		c, err := w.dial(w.Prov, "tcp", at(a, 8080), 5*time.Second)
		if err != nil {
			return fmt.Errorf("request to %v: %w", a, err)
		}
		_, err = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		b := make([]byte, 12)
		if err == nil {
			_, err = c.Read(b)
		}
		c.Close()
		if err != nil || string(b) != "HTTP/1.0 200" {
			return fmt.Errorf("answer of %v: %q, %v", a, b, err)
		}
	}
	return nil
}

// TestS26_Z31_Z33_FailsClosed: whatever is killed, deleted or flushed, by the
// task's root too, nothing that the task starts leaves by the primary, and
// requests that come in by it are answered by it (S23) and by nothing else
// (S24).
func TestS26_Z31_Z33_FailsClosed(t *testing.T) {
	kill := func(w *world) {
		st := must(w.host.Role(w.ctx, "host"))(w.t)
		check(w.t, syscall.Kill(st.PID, syscall.SIGKILL))
	}
	for _, sc := range []struct {
		name   string
		do     func(*world)
		back   bool // the way out comes back by itself
		behind bool // only the guard outside is left: what it stops is seen before it
		mutes  bool // requests are not answered any more: the task's own doing
	}{
		{name: "nothing broken", do: func(*world) {}, back: true},
		{name: "host role killed", do: kill, back: true},
		{name: "host stopped, tasks attached", do: func(w *world) { check(w.t, w.host.Stop()) }},
		{name: "supervisor and host killed", do: func(w *world) { check(w.t, w.host.Kill(w.ctx)) }},
		{name: "egress gone", do: func(w *world) { check(w.t, w.egress.Kill(w.ctx)) }},
		{name: "root deletes spill0", do: func(w *world) { w.root(w.Tasks[0], "ip", "link", "del", "spill0") }, back: true},
		{name: "root deletes spill0 with the engine dead", do: func(w *world) {
			check(w.t, w.host.Kill(w.ctx))
			w.root(w.Tasks[0], "ip", "link", "del", "spill0")
		}},
		{name: "root puts another interface in its place", do: func(w *world) {
			w.root(w.Tasks[0], "ip", "link", "del", "spill0")
			w.root(w.Tasks[0], "ip", "link", "add", "spill0", "type", "bridge")
		}, back: true},
		{name: "root gives its primary the tunnel's name", do: func(w *world) {
			check(w.t, w.host.Kill(w.ctx))
			for _, c := range []string{"link del spill0", "link set eth0 down", "link set eth0 name spill0", "link set spill0 up",
				"route replace default via 172.20.0.1 dev spill0 onlink", "route replace default via 172.20.0.1 dev spill0 table 5350 onlink"} {
				w.root(w.Tasks[0], "ip", strings.Fields(c)...)
			}
		}, behind: true, mutes: true},
		{name: "root flushes the tunnel's routes", do: func(w *world) {
			w.root(w.Tasks[0], "ip", "route", "flush", "table", "5350")
			w.root(w.Tasks[0], "ip", "-6", "route", "flush", "table", "5350")
		}},
		{name: "root flushes rules and guard", do: func(w *world) {
			for _, f := range []string{"-4", "-6"} {
				for prio := 5350; prio < 5360; prio++ {
					// Some priorities have no rule.
					_, _ = w.exec(w.Tasks[0], 5*time.Second, "ip", f, "rule", "del", "priority", fmt.Sprint(prio))
				}
			}
			w.root(w.Tasks[0], "nft", "flush", "ruleset")
		}, behind: true},
	} {
		t.Run(sc.name, func(t *testing.T) {
			w := begin(t, scene{Lab: netlab.Config{Tasks: 2}, Attach: true})
			check(t, w.reach(w.Tasks[0]))
			defer w.serveHTTP(w.Tasks[0])()
			outer := w.capture(w.Host, netlab.TaskPeer(0))
			prov, other := w.capture(w.Prov, "host0"), w.capture(w.Tasks[1], netlab.TaskLink)
			inner := w.capture(w.Tasks[0], "spill0")
			check(t, w.request(0))
			sc.do(w)
			tries := w.knock(w.Tasks[0])
			if !sc.mutes {
				eventually(t, 5*time.Second, func() error { return w.request(0) })
			}
			// A capture sees what comes out of the task before the guard
			// outside drops it.
			places := map[string]*netlab.Capture{"the provider's network": prov, "another task": other}
			if !sc.behind {
				places["the host's end of the primary"] = outer
			}
			if n, _ := inClear(outer, netlab.Client4, netlab.Client6); sc.behind && n == 0 {
				t.Error("nothing came out of the task: the guard outside was not tried")
			}
			for place, c := range places {
				if n, first := inClear(c, netlab.Client4, netlab.Client6); n > 0 {
					t.Errorf("%d packets in clear seen by %s in %d tries; the first:\n%s", n, place, tries, first)
				}
			}
			if n := inner.Count(netlab.Match{Has: []byte("the app saw")}); n > 0 {
				t.Errorf("%d packets of an answer to a request went by spill0", n)
			}
			if sc.back {
				eventually(t, 20*time.Second, func() error { return w.reach(w.Tasks[0]) })
			}
		})
	}
}

// TestS23_S24_UDPAnswersByThePrimary: a UDP server on a wildcard socket answers
// what came in by the primary by the primary, with the address it was asked
// at, whether the engine lives or not.
func TestS23_S24_UDPAnswersByThePrimary(t *testing.T) {
	w := begin(t, scene{Attach: true})
	task := w.Tasks[0]
	check(t, w.reach(task))
	inner := w.capture(task, "spill0")
	server := must(task.ListenPacket("udp", ":5300"))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return // closed
			}
			// An answer that cannot be sent is missed by whoever asked.
			_, _ = server.WriteTo(b[:n], from)
		}
	}()
	defer func() { server.Close(); <-done }()
	ask := func(text string) {
		t.Helper()
		for _, a := range families(task) {
			// The client's socket is connected: an answer from another
			// address does not count.
			c := must(w.dial(w.Prov, "udp", at(a, 5300), 5*time.Second))(t)
			if err := say(c, text); err != nil {
				t.Errorf("%s: %v: %v", text, a, err)
			}
			c.Close()
		}
	}
	ask("PRIMARY-QUESTION engine up")
	check(t, w.host.Kill(w.ctx))
	ask("PRIMARY-QUESTION engine dead")
	if n := inner.Count(netlab.Match{Has: []byte("PRIMARY-QUESTION")}); n > 0 {
		t.Errorf("%d answers went by spill0", n)
	}
}

// TestZ31_WhoIsLeftInANamespaceStaysShutIn: the path to a task's namespace
// goes away while a process is still in it. The task ends, and the process
// sends nothing in clear.
func TestZ31_WhoIsLeftInANamespaceStaysShutIn(t *testing.T) {
	w := begin(t, scene{})
	path := filepath.Join(w.Dir, "left")
	ns := must(hostnet.CreateNS(path))(t)
	defer ns.Close()
	box := &netlab.Box{Name: "left", NS: ns, Addr4: netip.MustParseAddr("172.20.1.2"), Addr6: netip.MustParseAddr("fd20:1::2")}
	box.Conn = must(ns.Open())(t)
	defer box.Conn.Close()
	check(t, w.Host.Conn.AddVeth("left0", "eth0", ns, 1500))
	for _, c := range []struct {
		conn     *hostnet.Conn
		link     string
		ip4, ip6 string
	}{{w.Host.Conn, "left0", "172.20.1.1/24", "fd20:1::1/64"}, {box.Conn, "eth0", "172.20.1.2/24", "fd20:1::2/64"}} {
		check(t, c.conn.SetUp(c.link))
		check(t, c.conn.AddAddr(c.link, netip.MustParsePrefix(c.ip4)))
		check(t, c.conn.AddAddr(c.link, netip.MustParsePrefix(c.ip6)))
	}
	for _, r := range []string{"0.0.0.0/0 172.20.1.1", "::/0 fd20:1::1"} {
		dst, via, _ := strings.Cut(r, " ")
		check(t, box.Conn.SetRoute(hostnet.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Dev: "eth0"}))
	}
	var task api.Task
	check(t, w.host.Query(w.ctx, &task, "attach", "--netns", path, "--service", "web", "--name", "left"))
	check(t, w.reach(box))
	stays := exec.CommandContext(w.ctx, judge(t, "sleep"), "60")
	check(t, box.Do(stays.Start))
	defer func() { _ = stays.Process.Kill(); _ = stays.Wait() }()

	outer := w.capture(w.Host, "left0")
	check(t, hostnet.DeleteNS(path))
	eventually(t, 10*time.Second, func() error {
		var list []api.Task
		if err := w.host.Query(w.ctx, &list, "task", "list"); err != nil || len(list) > 0 {
			return fmt.Errorf("tasks %v, %w", list, err)
		}
		return nil
	})
	tries := w.knock(box)
	if n, first := inClear(outer); n > 0 {
		t.Errorf("%d packets left in clear in %d tries; the first:\n%s", n, tries, first)
	}
}
