package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/tunnel"
)

// Weather is what a wire does to the packets of one direction. The zero
// Weather does nothing. Probabilities are 0 to 1.
type Weather struct {
	Loss      float64
	Duplicate float64
	// Reorder is how often a packet arrives Late later than it should.
	Reorder float64
	// Late is real time. Default 2 ms.
	Late time.Duration
	// Delay is how long every packet takes, in real time. Default none.
	Delay time.Duration
	// Down loses everything, as a cut cable does.
	Down bool
}

// wireRoom is how many packets wait at one end before more are lost.
const wireRoom = 8192

// Wire joins the tunnels of all machines of a lab. What it loses, doubles and
// delays is decided by a seed and a packet's number in its direction alone, so
// that it is the same in every run.
type Wire struct {
	seed  uint64
	trace *Trace
	clock clock.Clock // real: delays are

	mu    sync.Mutex
	ends  map[[2]string]*End  // guarded by mu; machine and peer, "" for all peers
	paths map[[2]string]*path // guarded by mu; from and to
}

// path is one direction between two machines.
type path struct {
	weather Weather
	dice    *rand.Rand
}

func newWire(seed uint64, trace *Trace) *Wire {
	return &Wire{
		seed: seed, trace: trace, clock: clock.System(),
		ends: make(map[[2]string]*End), paths: make(map[[2]string]*path),
	}
}

// Set changes the weather between two machines, both ways.
func (w *Wire) Set(a, b string, weather Weather) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pathLocked(a, b).weather = weather
	w.pathLocked(b, a).weather = weather
}

func (w *Wire) pathLocked(from, to string) *path {
	key := [2]string{from, to}
	if w.paths[key] == nil {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s>%s", from, to)
		w.paths[key] = &path{dice: rand.New(rand.NewPCG(w.seed, h.Sum64()))}
	}
	return w.paths[key]
}

// Connect gives machine a tunnel to one peer machine, or with an empty name to
// whichever peers it is told of.
func (w *Wire) Connect(machine, peer string) *End {
	e := &End{wire: w, machine: machine, key: [2]string{machine, peer}, wake: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[e.key] = e
	return e
}

// carry takes one packet from one machine to another.
func (w *Wire) carry(from, to string, data []byte) {
	hop := from + ">" + to
	w.mu.Lock()
	p := w.pathLocked(from, to)
	weather := p.weather
	// Always three draws, so that one knob does not move another's choices.
	lost, twice, late := p.dice.Float64() < weather.Loss, p.dice.Float64() < weather.Duplicate, p.dice.Float64() < weather.Reorder
	end := w.ends[[2]string{to, from}]
	if end == nil {
		end = w.ends[[2]string{to, ""}]
	}
	w.mu.Unlock()

	var due clock.Mono
	note := ""
	if weather.Delay > 0 || late {
		due = w.clock.Mono().Add(weather.Delay)
	}
	if late {
		due, note = due.Add(cmp.Or(weather.Late, 2*time.Millisecond)), "late"
	}
	switch {
	case weather.Down:
		w.trace.add(hop, packet.Packet{Data: data}, "lost: wire down")
	case lost:
		w.trace.add(hop, packet.Packet{Data: data}, "lost")
	case end == nil:
		w.trace.add(hop, packet.Packet{Data: data}, "lost: nobody listens")
	default:
		w.trace.add(hop, packet.Packet{Data: data}, note)
		end.arrive(from, data, due)
		if twice {
			w.trace.add(hop, packet.Packet{Data: data}, "doubled")
			end.arrive(from, data, 0)
		}
	}
}

// End is one machine's end of the wire. It is an engine.Tunnel that keeps the
// promises WireGuard makes: a packet goes to the peer whose AllowedIPs hold
// its destination, and comes only from the one whose hold its source.
type End struct {
	wire    *Wire
	machine string
	key     [2]string
	wake    chan struct{} // one token: something arrived, or the end was closed

	mu     sync.Mutex
	peers  []tunnel.Peer // guarded by mu
	queue  []arrival     // guarded by mu; by due
	closed bool          // guarded by mu
	forged int           // guarded by mu; packets from addresses not their sender's
}

type arrival struct {
	from string
	data []byte
	due  clock.Mono // zero: at once
}

// SetPeers implements engine.Tunnel.
func (e *End) SetPeers(peers []tunnel.Peer) error {
	for i, p := range peers {
		for _, q := range peers[:i] {
			for _, a := range p.AllowedIPs {
				if slices.ContainsFunc(q.AllowedIPs, a.Overlaps) {
					return errors.New("lab: AllowedIPs of " + p.Name + " and " + q.Name + " overlap")
				}
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers = slices.Clone(peers)
	return nil
}

// peerLocked returns the peer that ok likes.
func (e *End) peerLocked(ok func(*tunnel.Peer) bool) *tunnel.Peer {
	if i := slices.IndexFunc(e.peers, func(p tunnel.Peer) bool { return ok(&p) }); i >= 0 {
		return &e.peers[i]
	}
	return nil
}

func holds(p *tunnel.Peer, a packet.Addr) bool {
	ip := packet.ToNetip(a)
	return slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// Seal implements engine.Tunnel.
func (e *End) Seal(b *packet.Batch) {
	var cut packet.Segmenter
	var h packet.Parsed
	buf := make([]byte, packet.MaxPacket)
	for i := range b.Packets {
		pk := &b.Packets[i]
		if len(pk.Data) == 0 || h.Parse(pk) != packet.OK {
			continue
		}
		e.mu.Lock()
		p := e.peerLocked(func(p *tunnel.Peer) bool {
			return holds(p, h.Dst) && (pk.Peer == 0 || pk.Peer == p.ID)
		})
		name := ""
		if p != nil {
			name = p.Name
		}
		e.mu.Unlock()
		if name == "" {
			e.wire.trace.add(e.machine, *pk, "lost: no peer has this destination")
			continue
		}
		if cut.Start(pk) != packet.OK {
			e.wire.trace.add(e.machine, *pk, "lost: offload state that lies")
			continue
		}
		for more := true; more; {
			var n int
			n, more = cut.Next(buf)
			e.wire.carry(e.machine, name, slices.Clone(buf[:n]))
		}
	}
	b.Reset()
}

// arrive puts a packet where Open finds it.
func (e *End) arrive(from string, data []byte, due clock.Mono) {
	e.mu.Lock()
	if len(e.queue) < wireRoom && !e.closed {
		i, _ := slices.BinarySearchFunc(e.queue, due+1, func(a arrival, d clock.Mono) int { return cmp.Compare(a.due, d) })
		e.queue = slices.Insert(e.queue, i, arrival{from, data, due})
	}
	e.mu.Unlock()
	e.poke()
}

func (e *End) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Open implements engine.Tunnel. One goroutine calls it at a time.
func (e *End) Open(b *packet.Batch) error {
	b.Reset()
	for {
		wait, err := e.take(b)
		if err != nil || len(b.Packets) > 0 {
			return err
		}
		if wait < 0 {
			<-e.wake
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-e.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// take moves what is due into b. It returns how long to wait for the next
// packet, less than zero if there is none.
func (e *End) take(b *packet.Batch) (time.Duration, error) {
	now := e.wire.clock.Mono()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return 0, os.ErrClosed
	}
	for len(e.queue) > 0 {
		a := e.queue[0]
		if a.due > now {
			return a.due.Sub(now), nil
		}
		if b.Full(len(a.data)) {
			return 0, nil
		}
		e.queue = e.queue[1:]
		var h packet.Parsed
		reason := h.Parse(&packet.Packet{Data: a.data})
		p := e.peerLocked(func(p *tunnel.Peer) bool { return p.Name == a.from })
		if p == nil || reason != packet.OK || !holds(p, h.Src) {
			e.forged++
			e.wire.trace.add(a.from+">"+e.machine, packet.Packet{Data: a.data}, "refused: not an address of "+a.from)
			continue
		}
		b.Append(a.data).Peer = p.ID
	}
	return -1, nil
}

// Forged counts packets that a machine sent with a source it was not lent.
func (e *End) Forged() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.forged
}

// Run implements engine.Tunnel.
func (e *End) Run(ctx context.Context) error {
	<-ctx.Done()
	e.wire.mu.Lock()
	if e.wire.ends[e.key] == e {
		delete(e.wire.ends, e.key)
	}
	e.wire.mu.Unlock()
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.poke()
	return nil
}

// tunnelPeer is a peer as tunnels know it.
type tunnelPeer = tunnel.Peer

// anywhere is the prefixes of a peer that leads everywhere.
var anywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// Connected is the end that Connect gave last, or nil.
func (w *Wire) Connected(machine, peer string) *End {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ends[[2]string{machine, peer}]
}
