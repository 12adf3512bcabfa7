package flowtable

import "github.com/fe919326/spillway/internal/packet"

// conn is a copy of the TCP part of an entry. The functions below decide on
// it, one for each state; Observe commits it, or forgets it when the segment
// is dropped.
type conn struct {
	state State
	prior State // the state before a RST
	flags connFlags
	win   [2]window // by side
	// syn is the end of the last SYN that passed inside an established flow
	// and what it offered. Valid iff flagSynSeen.
	syn window
}

func (c *conn) liberal() bool { return c.flags&flagLiberal != 0 }

// ruling is what a state decided about a segment.
type ruling uint8

const (
	dropWindow ruling = iota // outside the window: drop
	dropState                // not allowed here: drop
	reopen                   // the flow is finished, and this SYN may start the next one
	pass                     // forward; nothing changes, no timer either
	refresh                  // forward, commit, restart the timer
)

func (r ruling) reason() Reason {
	switch r {
	case pass, refresh:
		return packet.OK
	case reopen:
		return packet.NoFlow
	case dropState:
		return packet.InvalidState
	}
	return packet.OutOfWindow
}

// start sets c for the first segment of a flow. It reports false if the
// segment may not start one.
func (c *conn) start(s *Segment, loose bool) bool {
	*c = conn{}
	if s.startsTCP() {
		c.state = SynSent
		c.win[0].syn(s)
		c.win[1].maxAck = s.Seq
		return true
	}
	// Mid-stream: an ordinary segment, or the FIN of a flow that was lost.
	if !loose || !s.is(packet.ACK|packet.SYN|packet.RST, packet.ACK) {
		return false
	}
	c.state, c.flags = Established, flagLiberal|flagPicked
	c.pickup(s)
	if s.Flags&packet.FIN != 0 {
		c.fin(Outbound)
	}
	return true
}

// step decides about segment s of direction d.
func (c *conn) step(d Direction, s *Segment) ruling {
	const kind = packet.SYN | packet.ACK | packet.RST | packet.FIN
	switch f := s.Flags & kind; {
	case f&packet.SYN != 0 && f&(packet.FIN|packet.RST) != 0,
		f&(packet.RST|packet.FIN) == packet.RST|packet.FIN,
		f&(packet.SYN|packet.ACK|packet.RST) == 0:
		return dropState // T5; and RFC 9293 3.10.7.4: no ACK, drop
	}
	switch c.state {
	case SynSent:
		return c.synSent(d, s)
	case SynCross:
		return c.synCross(d, s)
	case SynReceived:
		return c.synReceived(d, s)
	case Established, FinClient, FinServer, FinBoth:
		return c.open(d, s)
	case TimeWait:
		return c.timeWait(d, s)
	case Reset:
		return c.afterReset(d, s)
	}
	return dropState
}

// synSent: the client's SYN passed, nothing came back.
func (c *conn) synSent(d Direction, s *Segment) ruling {
	out, in := &c.win[0], &c.win[1]
	if d == Outbound {
		switch {
		case s.startsTCP(): // again, maybe with another initial number (T3)
			out.syn(s)
			*in = window{seqs: seqs{maxAck: s.Seq}}
			return refresh
		case s.Flags&packet.RST != 0:
			if s.Seq == out.end {
				return c.end(d)
			}
			return pass // answers a challenge of a server that has an old flow
		case c.liberal():
			return pass
		}
		return dropState
	}
	// in.maxAck is the client's initial number: with data in the SYN (RFC 7413)
	// the server may acknowledge all of it or the SYN alone.
	acksSyn := s.Flags&packet.ACK != 0 && after(s.Ack, in.maxAck) && !after(s.Ack, out.end)
	switch s.Flags & (packet.SYN | packet.ACK | packet.RST | packet.FIN) {
	case packet.SYN | packet.ACK:
		if !acksSyn {
			return dropWindow
		}
		c.answered(s)
		return refresh
	case packet.SYN: // simultaneous open (T2), the only SYN let in
		first := in.maxAck
		in.syn(s)
		in.maxAck = first
		out.maxAck = s.Seq
		c.agreeScale()
		out.maxEnd = out.end + max(in.maxWin, 1)
		in.maxEnd = in.end + out.maxWin
		c.state = SynCross
		return refresh
	case packet.RST | packet.ACK:
		if !acksSyn {
			return dropWindow
		}
		return c.end(d)
	case packet.RST:
		return dropWindow // RFC 9293 3.10.7.3: without ACK it means nothing
	case packet.ACK:
		if s.Len == 0 {
			return pass // the challenge of a server that has an old flow
		}
	}
	return dropState
}

// answered takes in the server's SYN-ACK s.
func (c *conn) answered(s *Segment) {
	out, in := &c.win[0], &c.win[1]
	in.syn(s)
	in.maxAck = s.Ack
	in.bits |= bitAck
	out.maxAck = s.Seq
	out.bits &^= bitAck
	c.agreeScale()
	out.maxEnd = out.end
	if edge := s.Ack + max(uint32(s.Window), 1); after(edge, out.maxEnd) {
		out.maxEnd = edge
	}
	in.maxEnd = in.end + out.maxWin
	c.state = SynReceived
}

// synCross: both sides sent a SYN. It is open when both acknowledged.
func (c *conn) synCross(d Direction, s *Segment) ruling {
	snd, rcv := &c.win[d.side()], &c.win[d.other().side()]
	switch {
	case s.Flags&packet.RST != 0:
		return c.reset(d, s)
	case s.startsTCP():
		if s.end() == snd.end {
			return refresh
		}
		if d == Outbound {
			return c.restart(s)
		}
		return dropState
	}
	first := snd.maxAck
	if snd.has(bitAck) {
		first--
	}
	if !after(s.Ack, first) {
		return dropWindow
	}
	if p := c.track(d, s); p != fresh {
		return c.unfresh(p)
	}
	if s.Flags&packet.SYN == 0 && s.Flags&packet.FIN != 0 {
		c.state = Established
		c.fin(d)
		return refresh
	}
	if snd.has(bitAck) && rcv.has(bitAck) {
		c.state = Established
	}
	return refresh
}

// restart begins again with the client's SYN s.
func (c *conn) restart(s *Segment) ruling {
	keep := c.flags & flagLiberal
	c.start(s, false)
	c.flags |= keep
	return refresh
}

// synReceived: the server's SYN-ACK passed.
func (c *conn) synReceived(d Direction, s *Segment) ruling {
	out, in := &c.win[0], &c.win[1]
	switch {
	case s.Flags&packet.RST != 0:
		return c.reset(d, s)
	case s.startsTCP():
		if d == Inbound {
			return dropState
		}
		if s.end() == out.end {
			return refresh // the SYN-ACK was lost behind us
		}
		return c.strayedSyn(s)
	case s.Flags&packet.SYN != 0 && d == Inbound:
		if s.end() == in.end {
			return refresh // once more
		}
		if after(s.Ack, out.end) || before(s.Ack, in.maxAck) {
			return dropWindow
		}
		c.answered(s) // the server began again, with another number
		return refresh
	case s.Flags&packet.SYN != 0:
		return dropState
	}
	if d == Outbound && !after(s.Ack, out.maxAck) && !c.liberal() {
		return dropWindow // does not acknowledge the server's SYN
	}
	if p := c.track(d, s); p != fresh {
		return c.unfresh(p)
	}
	if d == Outbound {
		c.state = Established
	}
	if s.Flags&packet.FIN != 0 {
		c.fin(d)
	}
	return refresh
}

// open: established, half-closed, or closing.
func (c *conn) open(d Direction, s *Segment) ruling {
	switch {
	case s.Flags&packet.RST != 0:
		return c.reset(d, s)
	case s.startsTCP():
		if d == Inbound {
			return dropState
		}
		return c.strayedSyn(s)
	case s.Flags&packet.SYN != 0 && d == Inbound && c.answersStrayed(s):
		// The server knew nothing of the flow and took the client's new SYN.
		c.win[0] = c.syn
		c.flags &= flagLiberal | flagPicked
		c.prior = NoState
		c.answered(s)
		return refresh
	}
	if p := c.track(d, s); p != fresh {
		return c.unfresh(p)
	}
	if d == Outbound {
		c.flags &^= flagRevived
	}
	if s.Flags&(packet.FIN|packet.SYN) == packet.FIN {
		c.fin(d)
	}
	if c.state == FinBoth && c.win[0].has(bitFinAck) && c.win[1].has(bitFinAck) {
		c.state = TimeWait
	}
	return refresh
}

// timeWait: both sides closed.
func (c *conn) timeWait(d Direction, s *Segment) ruling {
	switch {
	case s.Flags&packet.RST != 0:
		return c.reset(d, s)
	case s.startsTCP():
		switch {
		case d == Inbound:
			return dropState
		case c.mayReopen(s):
			return reopen
		}
		return c.strayedSyn(s)
	}
	if p := c.place(d, s); p == outside && !c.liberal() {
		return dropWindow
	}
	if s.Flags&packet.FIN != 0 {
		return refresh // the last ACK was lost: the other side still waits
	}
	return pass
}

// afterReset: a RST passed.
func (c *conn) afterReset(d Direction, s *Segment) ruling {
	if s.startsTCP() {
		if d == Inbound {
			return dropState
		}
		return reopen
	}
	p := c.place(d, s)
	if p == outside && !c.liberal() {
		return dropWindow
	}
	// A RST of the task may have died behind us (low TTL): when the server goes
	// on as if nothing was, the flow lives on, on probation until the task
	// sends again (Z8).
	if d == Inbound && p == fresh && c.flags&flagResetInside != 0 && c.prior >= Established && !c.prior.Finished() &&
		s.is(packet.ACK|packet.RST|packet.SYN, packet.ACK) {
		c.state, c.prior = c.prior, NoState
		c.flags = c.flags&^flagResetInside | flagRevived
		return c.open(d, s)
	}
	return pass
}

// mayReopen reports whether the client's SYN s may start a new connection on
// the tuple of c, which is finished (T13: RFC 6191, RFC 1122 4.2.2.13). Only a
// server that closed first is in TIME-WAIT and wants a higher number; the newer
// timestamp of RFC 6191 is not looked at.
func (c *conn) mayReopen(s *Segment) bool {
	if !s.startsTCP() {
		return false
	}
	switch c.state {
	case Reset:
		return true
	case TimeWait:
		return c.flags&flagInsideFirst != 0 || !before(s.Seq, c.win[0].end)
	}
	return false
}

// strayedSyn: a SYN of the client inside a flow that it must have forgotten.
// It passes and changes nothing; the server answers with a challenge, and the
// client's RST ends the flow (T11, RFC 5961 section 4.2).
func (c *conn) strayedSyn(s *Segment) ruling {
	c.syn.syn(s)
	c.flags |= flagSynSeen
	return pass
}

// answersStrayed reports whether the SYN-ACK s answers the SYN that strayed in.
func (c *conn) answersStrayed(s *Segment) bool {
	return c.flags&flagSynSeen != 0 && s.Flags&packet.ACK != 0 && s.Ack == c.syn.end && s.Ack != c.win[0].end
}

// unfresh decides about a segment that is not in the window. Old duplicates
// pass: the end host drops them and answers, and the answer may be needed.
func (c *conn) unfresh(p placed) ruling {
	if p == stale {
		return pass
	}
	return dropWindow
}

// fin takes in a FIN of direction d, which is in the window.
func (c *conn) fin(d Direction) {
	c.win[d.side()].bits |= bitFin
	switch {
	case c.win[0].has(bitFin) && c.win[1].has(bitFin):
		c.state = FinBoth
	case d == Outbound:
		c.state = FinClient
	default:
		c.state = FinServer
	}
	if c.flags&(flagInsideFirst|flagOutsideFirst) == 0 {
		c.flags |= flagOutsideFirst
		if d == Outbound {
			c.flags ^= flagOutsideFirst | flagInsideFirst
		}
	}
}

// reset decides about a RST (T10, RFC 5961 section 3.2, RFC 7857 section 2.2).
func (c *conn) reset(d Direction, s *Segment) ruling {
	snd, rcv := &c.win[d.side()], &c.win[d.other().side()]
	if s.Seq == snd.end || rcv.has(bitAck) && s.Seq == rcv.maxAck {
		return c.end(d)
	}
	low := snd.end - rcv.maxWin
	switch {
	case rcv.has(bitAck):
		low = rcv.maxAck
	case c.state.HalfOpen():
		low = rcv.maxAck + 1 // behind the SYN
	}
	switch in := !before(s.Seq, low) && !after(s.Seq, snd.maxEnd); {
	case in && (c.win[0].has(bitFin) || c.win[1].has(bitFin)):
		return c.end(d)
	case in || c.liberal():
		return pass // the end host will challenge it
	}
	return dropWindow
}

// end: a RST of direction d ends the flow.
func (c *conn) end(d Direction) ruling {
	c.prior, c.state = c.state, Reset
	if c.flags &^= flagResetInside | flagRevived; d == Outbound {
		c.flags |= flagResetInside
	}
	return refresh
}
