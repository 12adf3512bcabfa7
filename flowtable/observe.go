package flowtable

import (
	"sync/atomic"

	"github.com/fe919326/spillway/internal/packet"
)

// Observe decides whether segment s of direction d fits flow r, and if so
// counts it and moves the flow's state and timers. The reasons:
//
//	OK            forward it
//	NoFlow        r is no longer there, or it is over and s may start the next
//	              flow: treat s as a first packet (policy, then Insert)
//	FlowExpired   r idled out: answer the task with a RST
//	OutOfWindow   TCP, outside the tracked window
//	InvalidState  TCP, not allowed in this state
//
// A packet that is refused changes nothing and refreshes no timer.
func (t *Table) Observe(r Ref, d Direction, s *Segment, now Mono) Reason {
	e := t.entry(r)
	if e == nil || d != Outbound && d != Inbound {
		return packet.NoFlow
	}
	m, ok := e.lockFlow(r.gen())
	if !ok {
		return packet.NoFlow
	}
	tcp := e.Proto() == protoTCP
	if tickOf(now) >= e.expire {
		e.unlock(m)
		if d == Outbound && (!tcp || s.startsTCP()) {
			return packet.NoFlow
		}
		return packet.FlowExpired
	}
	if !tcp {
		t.observeDatagram(e, m, d, s, now)
		return packet.OK
	}
	var c conn
	e.read(m, &c)
	rule := c.step(d, s)
	if rule < pass {
		e.unlock(m)
		return rule.reason()
	}
	e.write(&c)
	e.count1(d, s)
	if rule == refresh {
		e.touch(now, tickAfter(now, t.cfg.Timeouts.tcp(c.state, c.flags)))
	}
	opened := m.state().HalfOpen() && !c.state.HalfOpen()
	task := e.task
	e.unlock(m.with(c.state, c.flags, c.prior))
	if opened {
		t.tasks.opened(task)
	}
	return packet.OK
}

// observeDatagram counts a UDP or ICMP packet. The flow is held and given back.
func (t *Table) observeDatagram(e *Entry, m meta, d Direction, s *Segment, now Mono) {
	state := m.state()
	if d == Inbound {
		state = TwoWay
	}
	e.count1(d, s)
	p := e.ports
	e.touch(now, tickAfter(now, t.cfg.Timeouts.datagram(uint8(p>>48), uint16(p>>16), state, d)))
	e.unlock(m.with(state, m.flags(), NoState))
}

// touch sets the timer. Within one tick nothing is written.
func (e *Entry) touch(now Mono, expire uint32) {
	if expire != e.expire {
		atomic.StoreUint32(&e.expire, expire)
		atomic.StoreUint32(&e.last, tickOf(now))
	}
}

// count1 adds one segment to the counters of direction d.
func (e *Entry) count1(d Direction, s *Segment) {
	side := d.side()
	e.add(side, max(s.Wire, 1))
	e.add(2+side, s.Bytes)
	e.seen[side] |= s.Flags
}

// read copies the TCP part of e, whose meta is m.
func (e *Entry) read(m meta, c *conn) {
	c.state, c.flags, c.prior = m.state(), m.flags(), m.prior()
	c.win[0] = window{e.win[0], e.scale[0]}
	c.win[1] = window{e.win[1], e.scale[1]}
	if c.flags&flagSynSeen != 0 {
		c.syn = window{seqs{end: e.synSeq, maxEnd: e.synSeq, maxWin: uint32(e.synWin)}, e.synScale}
	}
}

// write is the inverse of read, but for what is in meta.
func (e *Entry) write(c *conn) {
	e.win[0], e.win[1] = c.win[0].seqs, c.win[1].seqs
	e.scale = [2]uint8{c.win[0].bits, c.win[1].bits}
	if c.flags&flagSynSeen != 0 {
		e.synSeq, e.synWin, e.synScale = c.syn.end, uint16(c.syn.maxWin), c.syn.bits
	}
}
