package nat

import (
	"testing"
	"time"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// The load of TestJ6_FiveThousandPerSecond.
const (
	simTasks   = 1000
	simRate    = 5   // new connections per millisecond
	simPorts   = 600 // inner ports that a task uses in turn: each again after 120 s
	simRing    = 1 << 15
	simMaxLife = 13_000 // ms
)

// simConn is one connection as its two ends know it.
type simConn struct {
	inner        flowtable.Tuple
	outside      uint16
	task         uint32
	client, serv uint32 // initial sequence numbers
	step         uint8
	next         int32 // in its slot of the ring, or in the free list
}

// sim runs connections in steps of one millisecond. The ring has one slot for
// each millisecond to come.
type sim struct {
	*world
	p        *packet.Parsed // the SYN that every connection starts with
	now      int            // ms
	conns    []simConn
	free     int32
	ring     [simRing]int32
	rng      uint64
	started  int
	reopened int
	late     int
	peak     int
}

const simNone = -1

func (s *sim) rand(n int) int {
	s.rng = mix(s.rng + 0x9e3779b97f4a7c15)
	return int(s.rng % uint64(n))
}

func (s *sim) mono() clock.Mono { return start.Add(time.Duration(s.now) * time.Millisecond) }

// later runs connection i again in ms milliseconds.
func (s *sim) later(i int32, ms int) {
	slot := &s.ring[(s.now+ms)%simRing]
	s.conns[i].next, *slot = *slot, i
}

// send gives one segment of connection i to the table as the engine does, and
// checks whose it is.
func (s *sim) send(i int32, d flowtable.Direction, flags uint8, seq, ack, n uint32) packet.Reason {
	c := &s.conns[i]
	k := c.inner
	if d == flowtable.Inbound {
		k = flowtable.Tuple{
			Src: c.inner.Dst, Dst: packet.AddrFrom(out4),
			SrcPort: c.inner.DstPort, DstPort: c.outside, Proto: protoTCP,
		}
	}
	ref, dir := s.ft.Lookup(&k)
	if ref == 0 {
		return packet.NoFlow
	}
	e := s.ft.Entry(ref)
	if e == nil || dir != d {
		s.t.Fatalf("segment of connection %+v: entry %#x, direction %v", c, ref, dir)
	}
	if got := e.Inner(); got != c.inner || e.Task() != c.task {
		s.t.Fatalf("after %d ms: a segment of task %d's %+v was delivered to task %d's %+v", s.now, c.task, c.inner, e.Task(), got)
	}
	seg := flowtable.Segment{Flags: flags, Seq: seq, Ack: ack, Window: 65535, Len: n, Wire: 1, Bytes: 40 + n}
	return s.ft.Observe(ref, d, &seg, s.mono())
}

// open starts connection number s.started.
func (s *sim) open() {
	i := s.free
	if i == simNone {
		s.conns = append(s.conns, simConn{})
		i = int32(len(s.conns) - 1)
	} else {
		s.free = s.conns[i].next
	}
	c := &s.conns[i]
	task := s.started % simTasks
	// Numbers grow with time, as RFC 6528 says: a port used again is opened
	// with a higher one.
	*c = simConn{task: uint32(task), client: uint32(s.now)*4096 + uint32(s.rand(4096)), serv: uint32(s.rand(1 << 30))}
	setTask(s.p, task)
	s.p.SrcPort = 32768 + uint16(s.started/simTasks%simPorts)
	s.p.Seq = c.client
	c.inner = flowtable.TupleOf(s.p)
	s.started++

	if ref, _ := s.ft.Lookup(&c.inner); ref != 0 {
		s.reopened++
	}
	seg := flowtable.Segment{Flags: packet.SYN, Seq: c.client, Window: 65535, Wire: 1, Bytes: 60}
	ref, r := s.m.Admit(s.p, &seg, Meta{Task: c.task}, s.mono())
	if r != packet.OK {
		taken, mine := s.m.Ports(protoTCP, s.p.Dst, s.p.DstPort, c.task)
		s.t.Fatalf("connection %d after %d ms refused: %v; %d ports taken, %d by the task", s.started, s.now, r, taken, mine)
	}
	_, c.outside = s.ft.Entry(ref).Outside()
	s.later(i, 1+s.rand(3))
}

// run does the next step of connection i.
func (s *sim) run(i int32) {
	c := &s.conns[i]
	a, b := c.client+1, c.serv+1 // first bytes of data
	const in, out = flowtable.Inbound, flowtable.Outbound
	wait := 1 + s.rand(5)
	r := packet.OK
	switch c.step {
	case 0:
		r = s.send(i, in, packet.SYN|packet.ACK, c.serv, a, 0)
	case 1:
		r = s.send(i, out, packet.ACK|packet.PSH, a, b, 100)
	case 2:
		r = s.send(i, in, packet.ACK|packet.PSH, b, a+100, 1000)
		wait = 1 + s.rand(simMaxLife)
	case 3:
		r = s.send(i, out, packet.FIN|packet.ACK, a+100, b+1000, 0)
	case 4:
		r = s.send(i, in, packet.FIN|packet.ACK, b+1000, a+101, 0)
	case 5:
		r = s.send(i, out, packet.ACK, a+101, b+1001, 0)
		wait = 1 + s.rand(1900)
	case 6:
		// A late copy from the server: the owner gets it or nobody does, which
		// send checks. The hold of 2 s is not over, so it is the owner.
		s.late++
		r = s.send(i, in, packet.FIN|packet.ACK, b+1000, a+101, 0)
		c.next, s.free = s.free, i
	}
	if r != packet.OK {
		s.t.Fatalf("after %d ms: step %d of connection %+v: %v", s.now, c.step, c, r)
	}
	if c.step++; c.step < 7 {
		s.later(i, wait)
	}
}

// TestJ6_FiveThousandPerSecond carries 5,000 new TCP connections per second of
// 1,000 tasks to one destination behind one address for ten minutes, the
// connections living up to 13 s: none is refused, and every segment that comes
// back, late ones included, reaches the task that it is for. -short does half a
// minute, the race detector six seconds.
func TestJ6_FiveThousandPerSecond(t *testing.T) {
	ms := 600_000
	if testing.Short() {
		ms = 30_000
	}
	if raceEnabled {
		ms = 6_000
	}
	const flows = 1 << 17
	s := &sim{
		world: newWorld(t, flowtable.Config{MaxFlows: flows}, Config{}),
		p:     parse(t, pkt.TCP(at(task4, 1), at(server4, 5432), packet.SYN, 1, 0, nil)),
		free:  simNone,
	}
	for i := range s.ring {
		s.ring[i] = simNone
	}
	began := time.Now()
	for ; s.now < ms; s.now++ {
		i := s.ring[s.now%simRing]
		s.ring[s.now%simRing] = simNone
		for i != simNone {
			next := s.conns[i].next
			s.run(i)
			i = next
		}
		for range simRate {
			s.open()
		}
		if s.now%250 == 0 {
			s.ft.Sweep(s.mono(), flows)
		}
		if s.now%1000 == 0 {
			taken, _ := s.m.Ports(protoTCP, s.p.Dst, s.p.DstPort, 0)
			s.peak = max(s.peak, taken)
			if taken != s.ft.Len() {
				t.Fatalf("after %d ms: %d ports counted, %d flows in the table", s.now, taken, s.ft.Len())
			}
		}
	}
	t.Logf("%d connections (%d in a socket's hold), %d late segments, peak of %d ports, %v",
		s.started, s.reopened, s.late, s.peak, time.Since(began).Round(time.Millisecond))
	if s.started != ms*simRate || s.late == 0 || s.peak < min(20_000, 2*ms) {
		t.Errorf("the load was not what it should be: %d connections, %d late, peak %d", s.started, s.late, s.peak)
	}
	s.removeAll()
	s.checkEmpty()
}
