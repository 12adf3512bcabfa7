package device

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
)

const (
	defaultQuantum = 32
	// turnBytes ends a port's turn while others wait: one full super-packet.
	turnBytes = 64 << 10
	// pollEvents is how many ready ports one poll collects.
	pollEvents = 64
)

// Group serves many TUN interfaces as one Link. Its methods are safe for
// concurrent use. Ports are added and removed while Read and Write run.
//
// The ports share one epoll instance, whose own descriptor is registered with
// Go's network poller: a Read without work parks its goroutine and holds no OS
// thread. Ready ports are served in turn, so that one that floods costs the
// others no more than its turn.
type Group struct {
	quantum    int                          // immutable after NewGroup
	onPortDown func(port uint32, err error) // immutable; may be nil
	poller     *os.File                     // immutable: the epoll instance
	epfd       int                          // immutable: poller's descriptor
	conn       syscall.RawConn              // immutable: poller's
	closed     atomic.Bool
	noRoute    atomic.Uint64 // packets to ports that are not there
	ports      atomic.Int64  // number of ports

	mu     sync.RWMutex     // taken last, but for writersMu
	byNum  map[uint32]*port // guarded by mu
	serial int32            // guarded by mu: of the last port added

	readMu sync.Mutex                  // one reader at a time; taken before mu
	ready  readyList                   // guarded by readMu
	events [pollEvents]unix.EpollEvent // guarded by readMu
	found  int                         // guarded by readMu: ports that the last poll found ready
	look   func(uintptr)               // immutable: g.poll, made once
	wait   func(uintptr) bool          // immutable: g.waitReady, made once

	writersMu sync.Mutex // a leaf
	writers   []*writer  // guarded by writersMu: idle scratch space
}

// port is one interface in a group.
type port struct {
	num    uint32 // immutable
	serial int32  // immutable: tells ports apart that had the same number
	tun    *TUN   // immutable
	stats  counters
	down   atomic.Bool // given up; set once

	next   *port // in the ready list; guarded by Group.readMu
	queued bool  // in the ready list; guarded by Group.readMu
}

// counters is PortStats as it is counted.
type counters struct {
	readPackets, readSegments, readBytes    atomic.Uint64
	writePackets, writeSegments, writeBytes atomic.Uint64
	merged, fallbacks                       atomic.Uint64
	drops                                   [packet.NumReasons]atomic.Uint64
}

// readyList is a first-in first-out list of ports.
type readyList struct {
	head, tail *port
	n          int
}

func (l *readyList) push(p *port) {
	if p.queued {
		return
	}
	p.queued, p.next = true, nil
	if l.tail == nil {
		l.head = p
	} else {
		l.tail.next = p
	}
	l.tail = p
	l.n++
}

func (l *readyList) pop() *port {
	p := l.head
	if p == nil {
		return nil
	}
	if l.head = p.next; l.head == nil {
		l.tail = nil
	}
	p.next, p.queued = nil, false
	l.n--
	return p
}

// NewGroup returns a group without ports. It starts nothing, but it holds an
// epoll descriptor: Close it.
func NewGroup(c Config) (*Group, error) {
	switch {
	case c.Quantum == 0:
		c.Quantum = defaultQuantum
	case c.Quantum < 0 || c.Quantum > packet.MaxBatch:
		return nil, fmt.Errorf("device group: quantum %d is not in 1..%d", c.Quantum, packet.MaxBatch)
	}
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("device group: epoll: %w", err)
	}
	// Only a non-blocking descriptor is given to Go's poller.
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("device group: epoll: %w", err)
	}
	f := os.NewFile(uintptr(epfd), "epoll")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("device group: epoll: %w", err)
	}
	g := &Group{
		quantum: c.Quantum, onPortDown: c.OnPortDown,
		poller: f, epfd: epfd, conn: conn, byNum: map[uint32]*port{},
	}
	g.look, g.wait = g.poll, g.waitReady
	return g, nil
}

// Add makes t the port of that number and takes it over: Remove and Close
// close it. It returns ErrPortTaken, or os.ErrClosed after Close of the group
// or of t; t is then still the caller's.
func (g *Group) Add(num uint32, t *TUN) error {
	fd, ok := t.fd.acquire()
	if !ok {
		return fmt.Errorf("add port %d: TUN %q: %w", num, t.name, os.ErrClosed)
	}
	defer t.fd.release()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed.Load() {
		return fmt.Errorf("add port %d: %w", num, os.ErrClosed)
	}
	if g.byNum[num] != nil {
		return fmt.Errorf("add port %d: %w", num, ErrPortTaken)
	}
	g.serial++
	p := &port{num: num, serial: g.serial, tun: t}
	// Edge-triggered: a port stays in the ready list until a read finds it
	// empty, and only then does epoll have news about it. What is already
	// waiting is reported at once.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(num), Pad: p.serial}
	if err := unix.EpollCtl(g.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("add port %d: epoll: %w", num, err)
	}
	g.byNum[num] = p
	g.ports.Add(1)
	return nil
}

// Remove closes the port's TUN and forgets the port. A Read that is under way
// may still return packets of it, and a batch may hold some: do not give the
// number to another interface before those are gone. It returns ErrNoPort if
// there is none of that number.
func (g *Group) Remove(num uint32) error {
	g.mu.RLock()
	p := g.byNum[num]
	g.mu.RUnlock()
	if p == nil || !g.drop(p) {
		return fmt.Errorf("remove port %d: %w", num, ErrNoPort)
	}
	return nil
}

// drop takes p out of the group and closes it. It returns false if somebody
// else did.
func (g *Group) drop(p *port) bool {
	if !p.down.CompareAndSwap(false, true) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byNum[p.num] == p {
		delete(g.byNum, p.num)
		g.ports.Add(-1)
	}
	if fd, ok := p.tun.fd.acquire(); ok {
		// A duplicate may be open elsewhere: closing ours would not end the
		// events. Errors mean that the events have ended.
		if !g.closed.Load() {
			_ = unix.EpollCtl(g.epfd, unix.EPOLL_CTL_DEL, fd, nil)
		}
		p.tun.fd.release()
	}
	p.tun.fd.close()
	return true
}

// fail gives p up because of a broken descriptor.
func (g *Group) fail(p *port, errno unix.Errno) {
	if !g.drop(p) || g.onPortDown == nil {
		return
	}
	var err error = errno
	if errno == unix.EBADFD || errno == unix.EFAULT || errno == unix.ENODEV {
		err = fmt.Errorf("interface %s is gone: %w", p.tun.name, errno)
	}
	g.onPortDown(p.num, err)
}

// lookup returns the port of that number, or nil.
func (g *Group) lookup(num uint32) *port {
	g.mu.RLock()
	p := g.byNum[num]
	g.mu.RUnlock()
	return p
}

// Stats returns the counters of a port, or false if there is none of that
// number.
func (g *Group) Stats(num uint32) (PortStats, bool) {
	p := g.lookup(num)
	if p == nil {
		return PortStats{}, false
	}
	c := &p.stats
	s := PortStats{
		ReadPackets: c.readPackets.Load(), ReadSegments: c.readSegments.Load(), ReadBytes: c.readBytes.Load(),
		WritePackets: c.writePackets.Load(), WriteSegments: c.writeSegments.Load(), WriteBytes: c.writeBytes.Load(),
		Merged: c.merged.Load(), OffloadFallbacks: c.fallbacks.Load(),
	}
	for i := range c.drops {
		s.Drops[i] = c.drops[i].Load()
	}
	return s, true
}

// NoRoute returns the number of packets written to ports that are not there.
func (g *Group) NoRoute() uint64 { return g.noRoute.Load() }

// Close closes every port and ends Read.
func (g *Group) Close() error {
	g.mu.Lock()
	if g.closed.Swap(true) {
		g.mu.Unlock()
		return nil
	}
	all := make([]*port, 0, len(g.byNum))
	for _, p := range g.byNum {
		all = append(all, p)
	}
	g.mu.Unlock()
	var errs []error
	if err := g.poller.Close(); err != nil {
		errs = append(errs, fmt.Errorf("device group: %w", err))
	}
	for _, p := range all {
		g.drop(p)
	}
	// Wait for a Read that is under way.
	g.readMu.Lock()
	g.ready = readyList{}
	g.readMu.Unlock()
	return errors.Join(errs...)
}

var _ Link = (*Group)(nil)
