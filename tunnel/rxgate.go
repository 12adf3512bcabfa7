package tunnel

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// WireGuard message types and sizes (the WireGuard paper, section 5.4).
const (
	messageInitiation = 1
	messageResponse   = 2
	messageTransport  = 4

	sizeKeepalive = 32 // a transport message without a packet
)

const (
	// rxStallCheck is how long a full gate waits before it writes off sessions
	// whose packets do not come out.
	rxStallCheck = 10 * time.Millisecond
	// A session most of whose packets never come out (someone on the wire
	// sends junk under its index, or the peer sends from addresses that are not
	// its own) does not count against the others. It gets a rate of its own
	// instead, far below what one core decrypts, and a burst.
	suspectInterval = 8 * time.Microsecond // per packet
	suspectBurst    = 512
	// laneLife is how long a session index can be valid: the handshake may take
	// some seconds, the session lasts 180 s (RejectAfterTime).
	laneLife = 240 * time.Second
)

// lane is one session index of ours, as the peer writes it into its messages.
// All fields are guarded by rxGate.mu.
type lane struct {
	born clock.Mono
	peer *peerState // whose packets came out of it first; nil if none did

	in, out uint64 // number of the last packet received, delivered
	base    uint64 // packets up to it no longer count
	seen    uint64 // out at the last look of writeOff
	// What came out lately and what did not; see judge.
	good, lost uint64
	suspect    bool
	paid       clock.Mono // the suspect's packets are paid for until then
}

// rxGate bounds the packets between the UDP socket and Write. It counts only
// messages that bear a session index which this machine gave out, so that
// junk cannot close it.
type rxGate struct {
	limit int
	clock clock.Clock

	mu      sync.Mutex // a leaf: nothing is called under it
	lanes   map[uint32]*lane
	onWay   int
	sweepAt int // size of lanes at which the next learn sweeps
	blocked int // Writes that wait for room in the ring
	waiters []*rxWaiter
}

type rxWaiter struct {
	wake   chan struct{} // capacity 1
	parked bool          // guarded by rxGate.mu
	timer  *time.Timer
}

func newRxGate(limit int, c clock.Clock) *rxGate {
	return &rxGate{limit: max(limit, deviceBatch), clock: c, lanes: make(map[uint32]*lane), sweepAt: 64}
}

// newWaiter returns the place where one receive function waits.
func (g *rxGate) newWaiter() *rxWaiter {
	w := &rxWaiter{wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	g.mu.Lock()
	g.waiters = append(g.waiters, w)
	g.mu.Unlock()
	return w
}

// reset forgets the waiters of an earlier opening of the socket.
func (g *rxGate) reset() {
	g.mu.Lock()
	g.waiters = nil
	g.mu.Unlock()
}

// learn notes a session index of ours that goes out in a handshake message.
func (g *rxGate) learn(index uint32) {
	now := g.clock.Mono()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.lanes) >= g.sweepAt {
		for i, l := range g.lanes {
			if now.Sub(l.born) > laneLife {
				g.onWay -= l.counted()
				delete(g.lanes, i)
			}
		}
		g.sweepAt = max(64, 2*len(g.lanes))
	}
	if l := g.lanes[index]; l != nil {
		g.onWay -= l.counted()
	}
	g.lanes[index] = &lane{born: now}
}

// counted is the lane's share of onWay.
func (l *lane) counted() int { return int(l.in - max(l.out, l.base)) }

// wait returns when the next datagrams may be received, or false when closed
// is.
func (g *rxGate) wait(w *rxWaiter, closed <-chan struct{}) bool {
	g.mu.Lock()
	for g.onWay >= g.limit {
		w.parked = true
		g.mu.Unlock()
		w.timer.Reset(rxStallCheck)
		stalled := false
		select {
		case <-w.wake:
		case <-closed:
			w.timer.Stop()
			return false
		case <-w.timer.C:
			stalled = true
		}
		g.mu.Lock()
		if stalled && g.blocked == 0 {
			g.writeOffLocked()
		}
	}
	w.parked = false
	g.mu.Unlock()
	return true
}

func (g *rxGate) writeOffLocked() {
	for _, l := range g.lanes {
		n := l.counted()
		if n == 0 || l.seen != l.out {
			l.seen = l.out
			continue
		}
		l.base = l.in
		g.onWay -= n
		l.judge(0, uint64(n))
	}
}

// judge counts packets that came out and that did not, forgetting old ones, and
// decides whom to suspect. A session with a good past survives one mistake: a
// machine out of CPU may hold packets up for longer than rxStallCheck.
func (l *lane) judge(good, lost uint64) {
	l.good += good
	l.lost += lost
	for l.good+l.lost > 4*deviceBatch {
		l.good, l.lost = l.good/2, l.lost/2
	}
	l.suspect = l.lost > l.good
}

// received counts and tags a batch of datagrams. It sets the size of those
// that must not reach the device to 0 and returns how many there were.
func (g *rxGate) received(t tagger, bufs [][]byte, sizes []int) (refused int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var (
		last uint32
		l    *lane
	)
	for i, n := range sizes {
		b := bufs[i]
		if n <= sizeKeepalive || n > len(b) || binary.LittleEndian.Uint32(b) != messageTransport {
			continue
		}
		if index := binary.LittleEndian.Uint32(b[4:]); l == nil || index != last {
			last, l = index, g.lanes[index]
		}
		if l == nil {
			continue // the device does not know it either
		}
		if l.suspect && !l.afford(g.clock.Mono()) {
			sizes[i] = 0
			refused++
			continue
		}
		if l.suspect {
			g.onWay -= l.counted()
			l.in++
			l.base = l.in
		} else {
			l.in++
			g.onWay++
		}
		putTag(t.at(b, n), tagRx, last, l.in)
	}
	return refused
}

// afford takes one packet from a suspect's rate.
func (l *lane) afford(now clock.Mono) bool {
	l.paid = max(l.paid, now.Add(-suspectBurst*suspectInterval))
	if l.paid >= now {
		return false
	}
	l.paid = l.paid.Add(suspectInterval)
	return true
}

// owner returns the peer whose packets came out under that index before, or
// makes it p if none did. The device keeps one index for one peer only.
func (g *rxGate) owner(index uint32, p *peerState) *peerState {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[index]
	if l == nil {
		return p
	}
	if l.peer == nil {
		l.peer = p
	}
	return l.peer
}

// delivered tells that packets of a session up to seq came out, n of them now.
func (g *rxGate) delivered(index uint32, seq uint64, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.lanes[index]
	if l == nil || seq <= l.out || seq > l.in {
		return
	}
	before := l.counted()
	good, lost := uint64(n), uint64(0)
	if from := max(l.out, l.base); seq > from+good {
		lost = seq - from - good
	}
	l.out = seq
	l.judge(good, lost)
	g.onWay -= before - l.counted()
	if g.onWay >= g.limit {
		return
	}
	for _, w := range g.waiters {
		if w.parked {
			w.parked = false
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
}

// block notes that a Write waits for room (+1) or no longer does (-1).
func (g *rxGate) block(n int) {
	g.mu.Lock()
	g.blocked += n
	g.mu.Unlock()
}

// inFlight returns the packets on their way in.
func (g *rxGate) inFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.onWay
}
