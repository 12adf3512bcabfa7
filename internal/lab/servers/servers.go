// Package servers runs the small real servers that labs and the demo put on a
// private subnet: HTTP, TCP echo, TCP bulk, UDP echo and DNS. Each remembers
// who called, as it saw them.
package servers

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Ports the servers listen on.
const (
	HTTPPort = 80
	EchoPort = 7 // TCP and UDP (RFC 862)
	BulkPort = 5001
	DNSPort  = 53
)

// Set is the servers of one namespace. It is safe for concurrent use.
type Set struct {
	wg    sync.WaitGroup
	http  *http.Server
	names map[string][]netip.Addr // DNS zone; immutable

	mu     sync.Mutex
	seen   map[string][]netip.Addr // guarded by mu; by server name, each address once
	close  []io.Closer             // guarded by mu
	closed bool                    // guarded by mu
}

// Do runs a function inside a network namespace.
type Do func(func() error) error

// Start starts every server on the wildcard addresses of the namespace that do
// enters. names is what the DNS server knows.
func Start(do Do, names map[string][]netip.Addr) (*Set, error) {
	s := &Set{seen: make(map[string][]netip.Addr), names: names}
	if err := do(s.listen); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) listen() error {
	tcp := func(port int) (net.Listener, error) {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err == nil {
			s.keep(l)
		}
		return l, err
	}
	web, err := tcp(HTTPPort)
	if err != nil {
		return err
	}
	echo, err := tcp(EchoPort)
	if err != nil {
		return err
	}
	bulk, err := tcp(BulkPort)
	if err != nil {
		return err
	}
	echoUDP, err := s.listenEach(EchoPort)
	if err != nil {
		return err
	}
	nameUDP, err := net.ListenUDP("udp", &net.UDPAddr{Port: DNSPort})
	if err != nil {
		return err
	}
	s.keep(nameUDP)
	nameTCP, err := tcp(DNSPort)
	if err != nil {
		return err
	}

	s.http = &http.Server{Handler: http.HandlerFunc(s.hello), ReadHeaderTimeout: 5 * time.Second}
	names := []*dns.Server{
		{PacketConn: nameUDP, Handler: dns.HandlerFunc(s.resolve)},
		{Listener: nameTCP, Handler: dns.HandlerFunc(s.resolve)},
	}
	s.start(func() { _ = s.http.Serve(web) }) // ends by Close
	s.start(func() { s.accept(echo, "tcp-echo", func(c net.Conn) { _, _ = io.Copy(c, c) }) })
	s.start(func() { s.accept(bulk, "bulk", serveBulk) })
	for _, c := range echoUDP {
		s.start(func() { s.udpEcho(c) })
	}
	for _, d := range names {
		s.start(func() { _ = d.ActivateAndServe() }) // ends with its socket
	}
	return nil
}

// listenEach opens a UDP socket on every address of the namespace: answers
// from a wildcard socket would leave by whatever address the kernel likes best.
func (s *Set) listenEach(port int) ([]*net.UDPConn, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []*net.UDPConn
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr(), uint16(port))))
		if err != nil {
			return nil, err
		}
		s.keep(c)
		out = append(out, c)
	}
	return out, nil
}

func (s *Set) start(f func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// Close ends all servers and their connections.
func (s *Set) Close() {
	if s.http != nil {
		s.http.Close()
	}
	s.mu.Lock()
	s.closed = true
	for _, c := range s.close {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// keep makes Close close c.
func (s *Set) keep(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.close = append(s.close, c)
}

// Seen returns who called the server called name ("http", "tcp-echo", "bulk",
// "udp-echo", "dns"), each address once, in order of the first call.
func (s *Set) Seen(name string) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen[name])
}

// SeenAny returns who called any server.
func (s *Set) SeenAny() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []netip.Addr
	for _, list := range s.seen {
		for _, a := range list {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

func (s *Set) note(name string, a net.Addr) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return
	}
	ip := ap.Addr().Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.seen[name], ip) {
		s.seen[name] = append(s.seen[name], ip)
	}
}

func (s *Set) hello(w http.ResponseWriter, r *http.Request) {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		s.note("http", net.TCPAddrFromAddrPort(ap))
		fmt.Fprintf(w, "hello %s\n", ap.Addr().Unmap())
	}
}

func (s *Set) accept(l net.Listener, name string, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.note(name, c.RemoteAddr())
		s.keep(c)
		s.start(func() {
			defer c.Close()
			serve(c)
		})
	}
}

func (s *Set) udpEcho(c *net.UDPConn) {
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error about an earlier answer
		}
		s.note("udp-echo", net.UDPAddrFromAddrPort(from))
		_, _ = c.WriteToUDPAddrPort(b[:n], from) // like the network, an echo may be lost
	}
}

func (s *Set) resolve(w dns.ResponseWriter, q *dns.Msg) {
	s.note("dns", w.RemoteAddr())
	m := new(dns.Msg)
	m.SetReply(q)
	m.Rcode = dns.RcodeNameError
	for _, question := range q.Question {
		for _, a := range s.names[question.Name] {
			m.Rcode = dns.RcodeSuccess
			h := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: 30}
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				h.Rrtype = dns.TypeA
				m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				h.Rrtype = dns.TypeAAAA
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
			}
		}
	}
	_ = w.WriteMsg(m)
}

// The bulk protocol: one line, "put N" or "get N", then N bytes from the
// client or from the server, then the server sends the hex SHA-256 of what it
// got or sent, and a newline. The bytes are those of Pattern.

func serveBulk(c net.Conn) {
	var verb string
	var n int64
	if _, err := fmt.Fscanf(c, "%s %d\n", &verb, &n); err != nil {
		return
	}
	sum := sha256.New()
	var err error
	switch verb {
	case "put":
		_, err = io.CopyN(sum, c, n)
	case "get":
		_, err = io.CopyN(io.MultiWriter(c, sum), NewPattern(), n)
	default:
		return
	}
	if err == nil {
		fmt.Fprintln(c, hex.EncodeToString(sum.Sum(nil)))
	}
}

// Put sends n bytes to the bulk server at c and returns the hash of what the
// server got beside the hash of what was sent.
func Put(c net.Conn, n int64) (sent, got string, err error) {
	if _, err := fmt.Fprintf(c, "put %d\n", n); err != nil {
		return "", "", err
	}
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, sum), NewPattern(), n); err != nil {
		return "", "", err
	}
	if _, err := fmt.Fscanln(c, &got); err != nil {
		return "", "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), got, nil
}

// Get fetches n bytes from the bulk server at c and returns the hash of what
// the server sent beside the hash of what came.
func Get(c net.Conn, n int64) (sent, got string, err error) {
	if _, err := fmt.Fprintf(c, "get %d\n", n); err != nil {
		return "", "", err
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, c, n); err != nil {
		return "", "", err
	}
	if _, err := fmt.Fscanln(c, &sent); err != nil {
		return "", "", err
	}
	return sent, hex.EncodeToString(sum.Sum(nil)), nil
}

// mix spreads a counter over 64 bits (the golden ratio, as in Knuth's
// multiplicative hashing).
const mix = 0x9e3779b97f4a7c15

// Pattern is an endless stream of bytes in which no two megabytes are alike:
// a lost, doubled or swapped segment changes its hash.
type Pattern struct{ n uint64 }

// NewPattern returns a stream from its beginning.
func NewPattern() *Pattern { return &Pattern{} }

// Read implements io.Reader and never fails.
func (p *Pattern) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) && p.n&7 != 0 { // finish the word the last Read began
		b[n] = byte(p.n >> 3 * mix >> (8 * (p.n & 7)))
		n++
		p.n++
	}
	for ; n+8 <= len(b); n += 8 {
		binary.LittleEndian.PutUint64(b[n:], p.n>>3*mix)
		p.n += 8
	}
	for ; n < len(b); n++ {
		b[n] = byte(p.n >> 3 * mix >> (8 * (p.n & 7)))
		p.n++
	}
	return n, nil
}
