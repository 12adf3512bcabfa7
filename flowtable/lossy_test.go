package flowtable

import (
	"math/rand/v2"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
)

// host is a small TCP that sends and takes data over a network that loses,
// repeats and reorders. Only what a tracker in the middle must bear with is in
// it: windows, scaling, go-back, duplicate ACKs, FIN.
type host struct {
	iss, una, nxt uint32 // what it sent
	edge          uint32 // right edge the other side offered
	scale, other  uint8  // shift of its own and the other's window
	total         uint32 // bytes to send
	rcv           uint32 // next expected
	have          map[uint32]uint32
	room          uint32 // receive buffer
	unread        uint32
	finAt         uint32 // number of the other side's FIN, if seen
	finSeen, done bool
	offered       uint32 // right edge it ever offered
}

func (h *host) window() uint16 {
	w := (h.room - min(h.unread, h.room)) >> h.scale
	// Never take back what was offered (RFC 9293 section 3.8.6).
	if int32(h.rcv+w<<h.scale-h.offered) < 0 {
		w = (h.offered - h.rcv + 1<<h.scale - 1) >> h.scale
	}
	w = min(w, 65535)
	if e := h.rcv + w<<h.scale; int32(e-h.offered) > 0 {
		h.offered = e
	}
	return uint16(w)
}

func (h *host) seg(flags uint8, seq, n uint32) Segment {
	return Segment{Flags: flags | ack, Seq: seq, Ack: h.rcv, Window: h.window(), Len: n, Wire: 1 + n/1400, Bytes: 40 + n}
}

// answer is an ACK alone, in the window (tcp_acceptable_seq in Linux).
func (h *host) answer() Segment {
	if after(h.nxt, h.edge) {
		return h.seg(0, h.edge, 0)
	}
	return h.seg(0, h.nxt, 0)
}

// send returns what h sends next, from its place or back from una.
func (h *host) send(r *rand.Rand) (Segment, bool) {
	end := h.iss + 1 + h.total
	from := h.nxt
	if from == end+1 || r.IntN(4) == 0 {
		from = h.una
	}
	if before(from, h.una) {
		from = h.una
	}
	if from == end+1 {
		return Segment{}, false
	}
	if after(from, h.edge) {
		from = h.edge // a probe was sent before
	}
	n := min(uint32(1+r.IntN(20_000)), end-from, h.edge-from)
	switch {
	case from == end:
		if h.nxt == end {
			h.nxt++
		}
		return h.seg(fin, end, 0), true
	case n == 0 && h.una != h.edge:
		return Segment{}, false // all that fits is under way
	case n == 0:
		// Zero-window probe or keepalive.
		if r.IntN(2) == 0 {
			return h.seg(0, h.una-1, 0), true
		}
		if h.nxt == from {
			h.nxt++
		}
		return h.seg(0, from, 1), true
	}
	if after(from+n, h.nxt) {
		h.nxt = from + n
	}
	return h.seg(0, from, n), true
}

// take is an arrival at h; it reports whether h answers.
func (h *host) take(s *Segment, r *rand.Rand) bool {
	if after(s.Ack, h.una) && !after(s.Ack, h.nxt) {
		h.una = s.Ack
	}
	if e := s.Ack + uint32(s.Window)<<h.other; after(e, h.edge) {
		h.edge = e
	}
	if s.Flags&fin != 0 {
		h.finSeen, h.finAt = true, s.Seq+s.Len
	}
	if s.Len > 0 && !after(s.Seq, h.rcv+h.room) {
		h.have[s.Seq] = max(h.have[s.Seq], s.Len)
	}
	for again := true; again; {
		again = false
		for seq, n := range h.have {
			if after(seq, h.rcv) {
				continue
			}
			delete(h.have, seq)
			if e := seq + n; after(e, h.rcv) {
				h.unread += e - h.rcv
				h.rcv = e
			}
			again = true
		}
	}
	if r.IntN(3) > 0 {
		h.unread = 0
	}
	if h.finSeen && h.rcv == h.finAt {
		h.rcv++
		h.finSeen, h.done = false, true
	}
	return s.Len > 0 || s.Flags&fin != 0 || r.IntN(4) == 0
}

// TestT12_LossyRealTraffic runs many connections through a strict tracker with
// loss, duplicates and reordering on both sides of it: nothing may be dropped.
func TestT12_LossyRealTraffic(t *testing.T) {
	rounds := 300
	if testing.Short() {
		rounds = 30
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		k := newTalk(t, Config{})
		a := &host{iss: r.Uint32(), scale: uint8(r.IntN(15)), total: uint32(r.IntN(400_000)), room: uint32(2000 + r.IntN(1<<18)), have: map[uint32]uint32{}}
		b := &host{iss: r.Uint32(), scale: uint8(r.IntN(15)), total: uint32(r.IntN(400_000)), room: uint32(2000 + r.IntN(1<<18)), have: map[uint32]uint32{}}
		a.room, b.room = max(a.room, 4<<a.scale), max(b.room, 4<<b.scale)
		a.total, b.total = min(a.total, 20*b.room), min(b.total, 20*a.room) // to come to an end
		if r.IntN(4) == 0 {
			a.iss, b.iss = 0xffff_0000, 0xffff_ff00 // wraps early
		}
		syn1 := Segment{Flags: syn, Seq: a.iss, Window: uint16(min(a.room, 65535)), Scale: a.scale, HasScale: true}
		syn2 := Segment{Flags: syn | ack, Seq: b.iss, Ack: a.iss + 1, Window: uint16(min(b.room, 65535)), Scale: b.scale, HasScale: r.IntN(4) > 0}
		if !syn2.HasScale {
			a.scale, b.scale = 0, 0
		}
		a.other, b.other = b.scale, a.scale
		a.una, a.nxt, a.rcv, a.edge = a.iss+1, a.iss+1, b.iss+1, a.iss+1+uint32(syn2.Window)
		b.una, b.nxt, b.rcv, b.edge = b.iss+1, b.iss+1, a.iss+1, b.iss+1+uint32(syn1.Window)
		a.offered, b.offered = b.edge, a.edge
		ref, why := k.tab.Insert(&k.f, &syn1, k.now)
		if why != packet.OK {
			t.Fatal(why)
		}
		k.ref = ref
		if why := k.tab.Observe(ref, Inbound, &syn2, k.now); why != packet.OK {
			t.Fatal(why)
		}

		type flight struct {
			s   Segment
			d   Direction
			leg int // 0: before the tracker, 1: behind it
		}
		var air []flight
		loss := r.IntN(30)
		launch := func(d Direction, s Segment) { air = append(air, flight{s, d, 0}) }
		launch(Outbound, a.seg(0, a.nxt, 0))
		seen := false // the tracker saw the client's ACK
		for step := 0; step < 20_000 && k.state() != TimeWait; step++ {
			if len(air) < 30 {
				if s, ok := a.send(r); ok && r.IntN(3) == 0 {
					launch(Outbound, s)
				}
				if s, ok := b.send(r); ok && seen && r.IntN(3) == 0 {
					launch(Inbound, s)
				}
				// An ACK of its own from time to time, as a timer would send.
				if r.IntN(10) == 0 {
					launch(Outbound, a.answer())
					if seen {
						launch(Inbound, b.answer())
					}
				}
			}
			if len(air) == 0 {
				continue
			}
			i := 0
			if r.IntN(5) == 0 {
				i = r.IntN(len(air))
			}
			f := air[i]
			if r.IntN(100) >= 5 { // else it comes again
				air = append(air[:i], air[i+1:]...)
			}
			if r.IntN(100) < loss {
				continue
			}
			if f.leg == 0 {
				if why := k.tab.Observe(ref, f.d, &f.s, k.now); why != packet.OK {
					t.Fatalf("seed %d step %d: %v %+v dropped: %v in state %v", seed, step, f.d, f.s, why, k.state())
				}
				f.leg, seen = 1, seen || f.d == Outbound
				air = append(air, f)
				continue
			}
			to, back := b, Inbound
			if f.d == Inbound {
				to, back = a, Outbound
			}
			if to.take(&f.s, r) {
				launch(back, to.answer())
			}
		}
		if k.state() != TimeWait {
			t.Errorf("seed %d: not finished: state %v, a %d of %d, b %d of %d", seed, k.state(), a.una-a.iss-1, a.total, b.una-b.iss-1, b.total)
		}
	}
}
