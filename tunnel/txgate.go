package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

const (
	// deviceBatch is the largest number of packets that the device moves at
	// once (conn.IdealBatchSize).
	deviceBatch = 128
	// stallCheck is how often a full gate looks for peers that do not move,
	// stallStrikes how many looks in a row a peer must stand still. A machine
	// that is out of CPU may pause any goroutine for some ms.
	stallCheck   = 50 * time.Millisecond
	stallStrikes = 2
	// knockEvery is how often a peer without a session gets one more packet
	// when its share is full, so that the device tries the handshake again.
	knockEvery = 500 * time.Millisecond
)

// peerState is a peer for as long as its key is configured.
type peerState struct {
	key    Key
	slot   uint32        // names it in tags; never used again
	id     atomic.Uint32 // Peer.ID
	unsent atomic.Uint64 // PeerStatus.Unsent

	want Peer // guarded by Stock.control

	// moving says that the device sends for this peer: it has a session.
	moving atomic.Bool

	// Owned by the goroutine that calls Read.
	next    uint64 // number of the last packet given to the device
	pending uint64 // given since the last commit
	knocked clock.Mono

	mu sync.Mutex // a leaf: nothing is called under it
	// Guarded by mu. Packets up to sent have left. Of the others, those up to
	// base wait for a session, those up to read are on their way.
	read, sent, base uint64
	seen             uint64 // sent at the last look of writeOff
	strikes          int
	gone             bool // removed: counts no more
}

func (p *peerState) String() string {
	if p.want.Name != "" {
		return "peer " + p.want.Name
	}
	return "peer " + p.key.String()
}

// txGate bounds the packets between Read and Send. A peer that moves takes
// from limit; one without a session only from its own share of waiting, so
// that it never stands in another's way.
type txGate struct {
	limit   int64 // packets on their way
	perPeer uint64
	all     int64

	onWay   atomic.Int64 // packets on their way
	waiting atomic.Int64 // packets waiting for a session

	parked atomic.Bool
	wake   chan struct{} // capacity 1
	timer  *time.Timer   // owned by the goroutine that calls Read
}

func newTxGate(l *Limits) *txGate {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &txGate{
		limit: int64(max(l.TxPackets, deviceBatch)), perPeer: uint64(l.WaitingPerPeer), all: int64(l.Waiting),
		wake: make(chan struct{}, 1), timer: t,
	}
}

// wait returns when a whole batch may enter, or false when closed is.
func (g *txGate) wait(closed <-chan struct{}, peers func() []*peerState) bool {
	for g.onWay.Load() > g.limit-deviceBatch {
		g.parked.Store(true)
		if g.onWay.Load() <= g.limit-deviceBatch {
			break
		}
		g.timer.Reset(stallCheck)
		select {
		case <-g.wake:
		case <-closed:
			g.timer.Stop()
			return false
		case <-g.timer.C:
			g.writeOff(peers())
		}
	}
	g.parked.Store(false)
	return true
}

// admit reports whether one more packet for p may enter. Read calls it.
func (g *txGate) admit(p *peerState, c clock.Clock) bool {
	if p.moving.Load() {
		return true
	}
	p.mu.Lock()
	queued := p.next - p.sent
	p.mu.Unlock()
	if queued == 0 || queued < g.perPeer && g.waiting.Load() < g.all {
		return true
	}
	now := c.Mono()
	if now.Sub(p.knocked) < knockEvery {
		return false
	}
	p.knocked = now
	return true
}

// commit counts the packets that Read gave to p before it returns them.
func (g *txGate) commit(p *peerState) {
	p.mu.Lock()
	n := int64(p.pending)
	p.pending = 0
	p.read = p.next
	switch {
	case p.gone:
	case p.moving.Load():
		g.onWay.Add(n)
	default:
		p.base = p.read
		g.waiting.Add(n)
	}
	p.mu.Unlock()
}

// left tells that p's packets up to seq have been sent.
func (g *txGate) left(p *peerState, seq uint64) {
	p.mu.Lock()
	if !p.gone && seq > p.sent && seq <= p.read {
		old := p.sent
		p.sent = seq
		g.waiting.Add(-int64(min(seq, p.base) - min(old, p.base)))
		g.onWay.Add(-int64(max(seq, p.base) - max(old, p.base)))
		p.moving.Store(true)
	}
	p.mu.Unlock()
	g.signal()
}

func (g *txGate) signal() {
	if g.parked.Load() && g.onWay.Load() <= g.limit-deviceBatch {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

// writeOff finds peers whose packets stand still: the session is gone and the
// device holds the packets for the next one, or dropped them. They no longer
// count against the others.
func (g *txGate) writeOff(peers []*peerState) {
	for _, p := range peers {
		p.mu.Lock()
		from := max(p.sent, p.base)
		switch {
		case p.gone || p.read == from || p.seen != p.sent:
			p.seen, p.strikes = p.sent, 0
		case p.strikes+1 < stallStrikes:
			p.strikes++
		default:
			g.onWay.Add(-int64(p.read - from))
			g.waiting.Add(int64(p.read - from))
			p.base, p.strikes = p.read, 0
			p.moving.Store(false)
		}
		p.mu.Unlock()
	}
}

// forget takes p out of the counts: it is no longer configured.
func (g *txGate) forget(p *peerState) {
	p.mu.Lock()
	if !p.gone {
		p.gone = true
		g.waiting.Add(-int64(p.base - min(p.sent, p.base)))
		g.onWay.Add(-int64(p.read - max(p.sent, p.base)))
	}
	p.mu.Unlock()
	g.signal()
}

// queued returns the packets of p inside the device.
func (p *peerState) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.read - p.sent)
}
