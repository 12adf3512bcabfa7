package flowtable

import "github.com/fe919326/spillway/internal/packet"

// seqs is what is known about the sequence space of one side of a TCP flow, by
// the method of "Real Stateful TCP Packet Filtering in IP Filter" (Guido van
// Rooij) as in Linux (nf_conntrack_proto_tcp.c, struct ip_ct_tcp_state).
type seqs struct {
	end    uint32 // highest sequence number sent, plus one (td_end)
	maxEnd uint32 // right edge of the window the receiver offered (td_maxend)
	maxWin uint32 // largest window this side offered, in bytes; 0: nothing seen of it (td_maxwin)
	maxAck uint32 // highest acknowledgement this side sent (td_maxack); before that the peer's initial number
}

// The bits beside the window scale, which has the low four.
const (
	scaleMask = 0x0f
	bitScale  = 0x10 // the SYN had the window scale option
	bitAck    = 0x20 // maxAck is an acknowledgement
	bitFin    = 0x40 // a FIN was sent; end is behind it
	bitFinAck = 0x80 // and it was acknowledged
)

// window is one side of a conn.
type window struct {
	seqs
	bits uint8
}

func (w *window) has(bit uint8) bool { return w.bits&bit != 0 }
func (w *window) scale() uint8       { return w.bits & scaleMask }

// minAckWindow is how far back an acknowledgement may lie at least
// (MAXACKWINCONST in Linux).
const minAckWindow = 66000

// maxWindow is the largest window that can be offered (RFC 7323 section 2.3).
const maxWindow = 65535 << maxScale

// before and after compare sequence numbers (RFC 9293 section 3.4).
func before(a, b uint32) bool { return int32(a-b) < 0 }
func after(a, b uint32) bool  { return int32(b-a) < 0 }

// placed says where a segment lies.
type placed uint8

const (
	outside placed = iota // beyond the window: drop
	fresh                 // in the window
	stale                 // below it: an old duplicate, late or repeated
)

// syn sets the window of the side that sent SYN s.
func (w *window) syn(s *Segment) {
	*w = window{seqs: seqs{end: s.end(), maxEnd: s.end(), maxWin: max(uint32(s.Window), 1)}}
	if s.HasScale {
		w.bits = bitScale | s.Scale&scaleMask
	}
}

// agreeScale turns scaling off unless both SYNs offered it (RFC 7323 2.2).
func (c *conn) agreeScale() {
	if c.win[0].has(bitScale) && c.win[1].has(bitScale) {
		return
	}
	c.win[0].bits &^= bitScale | scaleMask
	c.win[1].bits &^= bitScale | scaleMask
}

// place decides where segment s of direction d lies, as tcp_in_window of Linux
// does. It changes nothing.
func (c *conn) place(d Direction, s *Segment) placed {
	snd, rcv := &c.win[d.side()], &c.win[d.other().side()]
	if after(s.Seq, snd.maxEnd) {
		return outside // over the window of the receiver
	}
	if s.Flags&packet.ACK != 0 && after(s.Ack, rcv.end) {
		return outside // acknowledges what was never sent
	}
	if rcv.maxWin != 0 && !after(s.end(), snd.end-rcv.maxWin-1) {
		return stale // repeats what was acknowledged
	}
	if s.Flags&packet.ACK != 0 && !after(s.Ack, rcv.end-max(snd.maxWin, minAckWindow)-1) {
		return stale // an acknowledgement that was long under way
	}
	return fresh
}

// track is place, and takes in what a segment in the window tells. A liberal
// flow takes in every segment.
func (c *conn) track(d Direction, s *Segment) placed {
	p := c.place(d, s)
	if p != fresh && !c.liberal() {
		return p
	}
	snd, rcv := &c.win[d.side()], &c.win[d.other().side()]
	win := uint32(s.Window)
	if s.Flags&packet.SYN == 0 {
		win <<= snd.scale()
	}
	snd.maxWin = max(snd.maxWin, win, 1)
	end := s.end()
	if after(end, snd.end) {
		snd.end = end
	}
	if after(end, snd.maxEnd) {
		// The segment reaches over the edge: what it acknowledges may be one
		// that the other side has taken nevertheless.
		if rcv.maxWin != 0 && rcv.maxWin < maxWindow {
			rcv.maxWin += end - snd.maxEnd
		}
		if p != fresh {
			snd.maxEnd = end
		}
	}
	if s.Flags&packet.ACK != 0 {
		if !snd.has(bitAck) || after(s.Ack, snd.maxAck) {
			snd.maxAck = s.Ack
			snd.bits |= bitAck
		}
		if after(s.Ack, rcv.end) { // liberal only
			rcv.end = s.Ack
		}
		edge := s.Ack + win
		if win == 0 {
			edge++ // a zero-window probe carries one byte
		}
		if after(edge, rcv.maxEnd) {
			rcv.maxEnd = edge
		}
		if rcv.has(bitFin) && !before(s.Ack, rcv.end) {
			rcv.bits |= bitFinAck
		}
	}
	return fresh // for a liberal flow, any place is as good
}

// pickup sets both windows from a segment of the task in mid-stream. The
// window scales are not known: the largest is assumed, so that the window is
// never too small.
func (c *conn) pickup(s *Segment) {
	end := s.end()
	win := max(uint32(s.Window)<<maxScale, 1)
	c.win[0] = window{seqs: seqs{end: end, maxEnd: end + win, maxWin: win}, bits: maxScale}
	c.win[1] = window{bits: maxScale}
	if s.Flags&packet.ACK != 0 {
		c.win[0].maxAck = s.Ack
		c.win[0].bits |= bitAck
		c.win[1].end, c.win[1].maxEnd = s.Ack, s.Ack+win
	}
}
