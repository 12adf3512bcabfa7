package engine

import (
	"sync/atomic"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// counters counts packets by reason, in wire segments.
type counters [packet.NumReasons]atomic.Uint64

// byReason returns what was counted, refusals only, by name.
func (c *counters) byReason() map[string]uint64 {
	out := make(map[string]uint64)
	for r := range c {
		if n := c[r].Load(); n != 0 && Reason(r) != packet.OK {
			out[Reason(r).String()] = n
		}
	}
	return out
}

// worker carries batches in one direction. It owns its scratch: one goroutine
// at a time uses it.
type worker struct {
	engine *Engine
	clock  clock.Clock

	parsed  packet.Parsed
	segment flowtable.Segment
	flow    flowtable.Flow
	// replies are packets the engine itself answers a task with. They go back
	// the way the refused packet came.
	replies *packet.Batch
	// side holds packets for a tunnel other than the batch's own.
	side *packet.Batch
}

func (e *Engine) newWorker() *worker {
	return &worker{
		engine:  e,
		clock:   e.clock,
		replies: packet.NewBatch(),
		side:    packet.NewBatch(),
	}
}

// mayStart reports whether p may be the first packet of a flow: a SYN alone,
// any UDP datagram, an ICMP echo request.
func mayStart(p *packet.Parsed) Reason {
	switch p.Proto {
	case packet.ProtoTCP:
		if p.Flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) == packet.SYN {
			return packet.OK
		}
	case packet.ProtoUDP:
		return packet.OK
	case packet.ProtoICMP, packet.ProtoICMPv6:
		if p.IsEchoRequest() {
			return packet.OK
		}
	}
	return packet.NoFlow
}

// answer says how a task learns that its packet was refused.
type answer uint8

const (
	silence answer = iota
	reset
	icmpAdminProhibited
	icmpHostUnreachable
	icmpProtocolUnreachable
	icmpTooBig
	icmpTimeExceeded
)

// answerTo is decision J5: policy and room are told to the task at once, what
// is malformed or forged is met with silence.
func answerTo(r Reason, p *packet.Parsed) answer {
	switch r {
	case packet.NoFlow, packet.FlowExpired:
		if p.Proto == packet.ProtoTCP {
			return reset
		}
	case packet.DeniedByPolicy, packet.TaskToTask, packet.Hairpin, packet.LocalRefused:
		return icmpAdminProhibited
	case packet.PortsExhausted, packet.TaskPortLimit, packet.TableFull, packet.TaskFlowLimit,
		packet.TaskRateLimit, packet.NoRoute, packet.NotOwner:
		return icmpHostUnreachable
	case packet.UnsupportedProtocol:
		return icmpProtocolUnreachable
	case packet.TTLExceeded:
		return icmpTimeExceeded
	case packet.TooBig:
		return icmpTooBig
	}
	return silence
}

// reply writes the answer a to p into w.replies and returns it, or nil where
// none may be sent (RFC 1812 section 4.3.2.7) or there is no room. from is the
// address ICMP errors come from.
func (w *worker) reply(a answer, p *packet.Parsed, from packet.Addr, mtu int) *packet.Packet {
	switch a {
	case reset:
		return packet.AppendReset(w.replies, p)
	case icmpAdminProhibited:
		return packet.AppendICMPError(w.replies, p, packet.AdminProhibited, from, 0)
	case icmpHostUnreachable:
		return packet.AppendICMPError(w.replies, p, packet.HostUnreachable, from, 0)
	case icmpProtocolUnreachable:
		return packet.AppendICMPError(w.replies, p, packet.ProtocolUnreachable, from, 0)
	case icmpTimeExceeded:
		return packet.AppendICMPError(w.replies, p, packet.TTLExceededError, from, 0)
	case icmpTooBig:
		return packet.AppendICMPError(w.replies, p, packet.FragNeeded, from, uint16(mtu))
	}
	return nil
}
