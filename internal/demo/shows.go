package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

func port(a netip.Addr, p int) string { return netip.AddrPortFrom(a, uint16(p)).String() }

// endpoint: the address is there before any task.
func (s *stage) endpoint() error {
	var eps []api.EndpointStatus
	if err := s.egress.Query(s.ctx, &eps, "endpoint", "list"); err != nil {
		return err
	}
	if len(eps) != 1 || len(eps[0].Addresses) != 1 || !eps[0].Addresses[0].V4.IsValid() {
		return fmt.Errorf("want one endpoint with one address, got %+v", eps)
	}
	s.outside = eps[0].Addresses[0].V4
	err := error(nil)
	if !netlab.SubnetCIDR4.Contains(s.outside) {
		err = fmt.Errorf("%v is not of the subnet %v", s.outside, netlab.SubnetCIDR4)
	}
	s.check("endpoint before any task", err, "%s is %v and %v in %s, for service %s", eps[0].ID, s.outside,
		eps[0].Addresses[0].V6, eps[0].Subnet, strings.Join(eps[0].Services, ","))
	return nil
}

// attach: each task's secondary interface, and how long it took.
func (s *stage) attach() error {
	for i, t := range s.lab.Tasks {
		id := "task-" + strconv.Itoa(i+1)
		var task api.Task
		if err := s.host.Query(s.ctx, &task, "attach", "--netns", t.NS.Path(), "--service", "web", "--name", id); err != nil {
			return fmt.Errorf("%w\n%s", err, s.host.LogTail())
		}
		s.ids = append(s.ids, id)
		var err error
		if len(task.Outside) == 0 || task.Outside[0] != s.outside {
			err = fmt.Errorf("leaves as %v, want %v", task.Outside, s.outside)
		}
		s.check("attach "+id, err, "%s, inner %v, in %v", task.Interface, task.Inner[0],
			(time.Duration(task.Steps["total"]) * time.Microsecond).Round(10*time.Microsecond))
	}
	return nil
}

// get fetches a page from inside a box.
func get(ctx context.Context, box *netlab.Box, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, network, addr string) (net.Conn, error) { return box.Dial(ctx, network, addr) },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return strings.TrimSpace(string(b)), err
}

// echo sends a line to an echo server and wants it back.
func echo(ctx context.Context, box *netlab.Box, network, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := box.Dial(ctx, network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	want := []byte("does it come back?")
	if _, err := c.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s echo gave %q", network, got)
	}
	return nil
}

// lookup asks the subnet's resolver for a name.
func lookup(ctx context.Context, box *netlab.Box, network string, server netip.Addr, name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := box.Dial(ctx, network, port(server, servers.DNSPort))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	conn := &dns.Conn{Conn: c}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return netip.Addr{}, err
	}
	if err := conn.WriteMsg(m); err != nil {
		return netip.Addr{}, err
	}
	r, err := conn.ReadMsg()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range r.Answer {
		if a, ok := rr.(*dns.A); ok {
			ip, _ := netip.AddrFromSlice(a.A.To4())
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address for %s (%s)", name, dns.RcodeToString[r.Rcode])
}

// reach: all tasks, all protocols, both families, one address.
func (s *stage) reach() {
	srv := s.lab.Servers[0]
	for i, t := range s.lab.Tasks {
		page, err := get(s.ctx, t, "http://"+port(srv.Addr4, servers.HTTPPort)+"/")
		if err == nil && page != "hello "+s.outside.String() {
			err = fmt.Errorf("the server says %q, want it to see %v", page, s.outside)
		}
		for _, a := range []netip.Addr{srv.Addr4, srv.Addr6} {
			for _, network := range []string{"tcp", "udp"} {
				if err == nil {
					if e := echo(s.ctx, t, network, port(a, servers.EchoPort)); e != nil {
						err = fmt.Errorf("%s echo of %v: %w", network, a, e)
					}
				}
			}
		}
		var ip netip.Addr
		if err == nil {
			ip, err = lookup(s.ctx, t, "udp", srv.Addr4, "db.internal.")
		}
		s.check(s.ids[i]+" reaches the subnet", err, "HTTP says %q; TCP, UDP echo over IPv4 and IPv6; db.internal is %v", page, ip)
	}
	var got []string
	for _, a := range s.servers.SeenAny() {
		if a.Is4() {
			got = append(got, a.String())
		}
	}
	var err error
	if len(got) != 1 || got[0] != s.outside.String() {
		err = fmt.Errorf("the servers saw %v", got)
	}
	s.check("one address for all tasks", err, "the servers saw %s and nobody else (IPv4)", strings.Join(got, ", "))
}

// inboundMeanwhile: the primary interface answers what came in by it.
func (s *stage) inboundMeanwhile() {
	t := s.lab.Tasks[0]
	l, err := t.Listen("tcp", ":8080")
	if err != nil {
		s.check("inbound by the primary", err, "")
		return
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr) // set by net/http
		fmt.Fprintf(w, "the app saw %s", host)
	})}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_ = srv.Serve(l) // ends by Close
	}()
	defer wg.Wait()
	defer srv.Close()

	bulk := make(chan error, 1)
	go func() { _, err := s.transfer(t, "get", 64<<20); bulk <- err }()
	answers := 0
	for err == nil && answers < 10 {
		_, err = get(s.ctx, s.lab.Prov, "http://"+port(t.Addr4, 8080)+"/")
		answers++
	}
	if e := <-bulk; err == nil {
		err = e
	}
	s.check("inbound by the primary", err, "%d requests to %v:8080 answered while 64 MB came by spill0", answers, t.Addr4)
}

// unsolicited: nothing on the subnet gets an answer out of the endpoint.
func (s *stage) unsolicited() {
	srv := s.lab.Servers[0]
	for _, p := range []int{22, 80, 51820} {
		ctx, cancel := context.WithTimeout(s.ctx, 700*time.Millisecond)
		c, err := srv.Dial(ctx, "tcp", port(s.outside, p))
		cancel()
		var silence net.Error
		switch {
		case err == nil:
			c.Close()
			err = fmt.Errorf("%v:%d accepts connections", s.outside, p)
		case errors.As(err, &silence) && silence.Timeout():
			err = nil
		default:
			err = fmt.Errorf("%v:%d: %w, want silence", s.outside, p, err)
		}
		s.check(fmt.Sprintf("TCP to the endpoint, port %d", p), err, "no answer at all")
	}
	err := silentUDP(s.ctx, srv, port(s.outside, 4000))
	s.check("UDP to the endpoint", err, "no answer at all")
	var eps []api.EndpointStatus
	if err := s.egress.Query(s.ctx, &eps, "endpoint", "list"); err != nil || len(eps) != 1 {
		s.check("refusals are counted", errors.Join(err, errors.New("no endpoint list")), "")
		return
	}
	n := eps[0].Drops["unsolicited"]
	if n == 0 {
		err = fmt.Errorf("counted nothing: %v", eps[0].Drops)
	}
	s.check("refusals are counted", err, "%d packets under reason unsolicited", n)
}

// silentUDP fails if addr answers a datagram, by whatever means.
func silentUDP(ctx context.Context, box *netlab.Box, addr string) error {
	c, err := box.Dial(ctx, "udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 100))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%s answers: %d bytes, %v", addr, n, err)
	}
	return nil
}

// refused dials what must be refused, and at once.
func refused(ctx context.Context, box *netlab.Box, addr string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	begun := time.Now()
	c, err := box.Dial(ctx, "tcp", addr)
	took := time.Since(begun)
	switch {
	case err == nil:
		c.Close()
		return took, fmt.Errorf("%s is reached", addr)
	case !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENETUNREACH):
		return took, fmt.Errorf("%s: %w, want an ICMP refusal", addr, err)
	case took > 500*time.Millisecond:
		return took, fmt.Errorf("%s: the refusal took %v", addr, took)
	}
	return took, nil
}

// denied: no rule, no way, and the flow log has the reason.
func (s *stage) denied() {
	srv := s.lab.Servers[0]
	took, err := refused(s.ctx, s.lab.Tasks[0], port(srv.Addr4, deniedPort))
	s.check("denied destination", err, "%v:%d refused by ICMP in %v", srv.Addr4, deniedPort, took.Round(time.Microsecond))
	line, err := s.logLine("denied-by-policy", strconv.Itoa(deniedPort))
	s.check("its line in the flow log", err, "%s", line)
}

// logLine waits for a line of the flow log with all the words.
func (s *stage) logLine(words ...string) (string, error) {
	for range 100 {
		b, err := os.ReadFile(s.egress.FlowLog())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	lines:
		for line := range strings.Lines(string(b)) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return strings.TrimSpace(line), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", fmt.Errorf("no line with %v in the flow log", words)
}

// taskToTask: tasks behind one endpoint do not reach each other.
func (s *stage) taskToTask() {
	var list []api.Task
	if err := s.host.Query(s.ctx, &list, "task", "list"); err != nil || len(list) < 2 {
		s.check("task to task", errors.Join(err, errors.New("fewer than two tasks")), "")
		return
	}
	took, err := refused(s.ctx, s.lab.Tasks[0], port(list[1].Inner[0], 80))
	s.check("task to task", err, "%s to %s at %v refused in %v", list[0].ID, list[1].ID, list[1].Inner[0], took.Round(time.Microsecond))
}

// transfer moves n bytes and compares hashes; it returns bytes a second.
func (s *stage) transfer(t *netlab.Box, verb string, n int64) (float64, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	c, err := t.Dial(ctx, "tcp", port(s.lab.Servers[0].Addr4, servers.BulkPort))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, err
	}
	move := servers.Put
	if verb == "get" {
		move = servers.Get
	}
	begun := time.Now()
	sent, got, err := move(c, n)
	if err == nil && sent != got {
		err = fmt.Errorf("%s of %d bytes: hash %s became %s", verb, n, sent, got)
	}
	return float64(n) / time.Since(begun).Seconds(), err
}

// throughput: what one stream carries, hashes compared.
func (s *stage) throughput() {
	const n = 256 << 20
	for _, verb := range []string{"put", "get"} {
		rate, err := s.transfer(s.lab.Tasks[1], verb, n)
		s.check("throughput, "+map[string]string{"put": "up", "get": "down"}[verb], err,
			"%d MB by one stream at %.2f Gb/s, SHA-256 equal at both ends", n>>20, rate*8/1e9)
	}
}

// killed: with the engine gone, nothing leaves by the primary, and when it is
// back the tasks go on.
func (s *stage) killed() {
	t := s.lab.Tasks[0]
	capture, err := s.lab.Host.Capture(netlab.TaskPeer(0))
	if err != nil {
		s.check("engine killed", err, "")
		return
	}
	defer capture.Stop()
	if err := s.host.Kill(s.ctx); err != nil {
		s.check("engine killed", err, "")
		return
	}
	// The capture must be seen to work before its silence means anything.
	ctx, cancel := context.WithTimeout(s.ctx, 400*time.Millisecond)
	if c, err := s.lab.Prov.Dial(ctx, "tcp", port(t.Addr4, 8080)); err == nil {
		c.Close() // nobody listens any more: to be refused is enough
	}
	cancel()
	control := netlab.Match{Dst: netip.PrefixFrom(t.Addr4, t.Addr4.BitLen()), IP: true}
	if err := capture.Wait(control, 1, time.Second); err != nil {
		s.check("nothing leaves by the primary", fmt.Errorf("the capture does not even see what comes in: %w", err), "")
		return
	}
	tries := 0
	for _, a := range []netip.Addr{s.lab.Servers[0].Addr4, s.lab.Servers[0].Addr6, netlab.Client4, netlab.Client6} {
		for _, network := range []string{"tcp", "udp"} {
			ctx, cancel := context.WithTimeout(s.ctx, 400*time.Millisecond)
			c, err := t.Dial(ctx, network, port(a, servers.EchoPort))
			cancel()
			tries++
			if err != nil {
				continue
			}
			if network == "tcp" {
				s.check("engine killed", fmt.Errorf("%v is still reached", a), "")
			}
			_, _ = c.Write([]byte("in clear?")) // whether it leaves is what the capture tells
			c.Close()
		}
	}
	err = nil
	// What the host's end of the primary receives, the task has sent.
	for _, a := range []netip.Addr{s.lab.Servers[0].Addr4, s.lab.Servers[0].Addr6, netlab.Client4, netlab.Client6} {
		// By port: the task's answer to the control is no leak.
		if n := capture.Count(netlab.Match{Dst: netip.PrefixFrom(a, a.BitLen()), Port: servers.EchoPort, IP: true}); n > 0 {
			err = errors.Join(err, fmt.Errorf("%d packets to %v left in clear", n, a))
		}
	}
	s.check("nothing leaves by the primary", err, "%d attempts over both families, 0 packets on the primary", tries)

	if err := s.host.Start(s.ctx); err != nil {
		s.check("the engine comes back", err, "")
		return
	}
	begun := time.Now()
	for {
		if err = echo(s.ctx, t, "tcp", port(s.lab.Servers[0].Addr4, servers.EchoPort)); err == nil || time.Since(begun) > 10*time.Second {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.check("the engine comes back", err, "tasks are taken up again, nobody attached them anew")
}
