package flowlog

import (
	"net/netip"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// AggregatorConfig bounds an Aggregator. The zero value is the default.
type AggregatorConfig struct {
	// MaxKeys is how many different refusals one interval can hold. More are
	// lost and counted. Default 16,384.
	MaxKeys int
	// MaxKeysPerSource is how many of them can come from one inner address
	// (and how many from the subnet towards no task), so that a task that
	// scans cannot hide what others were refused. Default: an eighth of
	// MaxKeys, at least 1.
	MaxKeysPerSource int
	// HoldRefusals keeps the first refusal of a key back until the interval
	// ends, so that there is exactly one line per key and interval. Default
	// false: the first one becomes a line at once, the rest of the interval
	// one more.
	HoldRefusals bool
}

// Aggregator turns records and samples into the records of lines: refusals
// are added up per 5-tuple, direction and reason until the interval ends,
// samples become one record per direction. It reads no clock and starts
// nothing: the same input gives the same output in the same order. Not safe
// for concurrent use.
type Aggregator struct {
	cfg     AggregatorConfig
	index   map[refusalKey]int32 // into entries
	entries []Record             // in order of arrival; Packets is 0 if nothing is held
	sources map[netip.Addr]int   // keys by inner address
	scratch Record               // what emit is given: a local one would be allocated
}

// refusalKey is what refusals must have in common to share a line.
type refusalKey struct {
	endpoint               *Endpoint
	inner, outside, remote netip.AddrPort
	proto, typ, code       uint8
	direction              Direction
	action                 Action
	reason                 Reason
}

// NewAggregator returns an empty aggregator.
func NewAggregator(cfg AggregatorConfig) *Aggregator {
	if cfg.MaxKeys <= 0 {
		cfg.MaxKeys = 16384
	}
	if cfg.MaxKeysPerSource <= 0 {
		cfg.MaxKeysPerSource = max(1, cfg.MaxKeys/8)
	}
	return &Aggregator{cfg: cfg, index: make(map[refusalKey]int32), sources: make(map[netip.Addr]int)}
}

// Keys returns how many different refusals the interval holds so far.
func (a *Aggregator) Keys() int { return len(a.entries) }

// Add takes a record. Refusals are held until End, but for the first of a key
// if HoldRefusals is false; accepted packets become a line at once. It reports
// false if the interval can hold no more: then the caller counts r as lost.
// r.First and r.Last must be set. emit must not keep its argument.
func (a *Aggregator) Add(r *Record, emit func(*Record)) bool {
	a.scratch = *r
	c := &a.scratch
	if c.Packets == 0 {
		c.Packets = 1
	}
	syn := uint8(packet.SYN | packet.ACK)
	c.TCPFlags = reportedFlags(c.TCPFlags, c.TCPFlags&syn == syn)
	if c.Action == Accept {
		emit(c)
		return true
	}
	k := refusalKey{c.Endpoint, c.Inner, c.Outside, c.Remote, c.Proto, c.ICMPType, c.ICMPCode, c.Direction, c.Action, c.Reason}
	if i, ok := a.index[k]; ok {
		merge(&a.entries[i], c)
		return true
	}
	source := c.Inner.Addr()
	if len(a.entries) >= a.cfg.MaxKeys || a.sources[source] >= a.cfg.MaxKeysPerSource {
		return false
	}
	a.sources[source]++
	a.index[k] = int32(len(a.entries))
	if !a.cfg.HoldRefusals {
		emit(c)
		c.Packets, c.Bytes, c.TCPFlags, c.First, c.Last = 0, 0, 0, 0, 0
	}
	a.entries = append(a.entries, *c)
	return true
}

// merge adds c to what is held of its key.
func merge(held, c *Record) {
	if held.Packets == 0 {
		held.First, held.Last = c.First, c.Last
	}
	held.Packets += c.Packets
	held.Bytes += c.Bytes
	held.TCPFlags |= c.TCPFlags
	held.First = min(held.First, c.First)
	held.Last = max(held.Last, c.Last)
}

// AddFlow turns a sample into at most one record per direction: none for a
// direction that carried nothing. s.First and s.Last must be set. emit must
// not keep its argument.
func (a *Aggregator) AddFlow(s *FlowSample, emit func(*Record)) {
	r := &a.scratch
	*r = Record{
		Endpoint: s.Endpoint, Task: s.Task, Service: s.Service, Group: s.Group, Rule: s.Rule,
		Inner: s.Inner, Outside: s.Outside, Remote: s.Remote,
		Proto: s.Proto, ICMPType: s.ICMPType, ICMPCode: s.ICMPCode,
		First: s.First, Last: s.Last, Action: Accept, Reason: packet.OK,
	}
	if s.OutPackets > 0 || s.OutBytes > 0 {
		r.Direction, r.Packets, r.Bytes = Egress, s.OutPackets, s.OutBytes
		// A task begins its flows with SYN alone: SYN and ACK together come
		// from different packets.
		r.TCPFlags = reportedFlags(s.OutFlags, false)
		emit(r)
	}
	if s.InPackets > 0 || s.InBytes > 0 {
		r.Direction, r.Packets, r.Bytes = Ingress, s.InPackets, s.InBytes
		// A remote side never sends SYN without ACK: it could not begin a flow.
		r.TCPFlags = reportedFlags(s.InFlags, s.InFlags&packet.SYN != 0)
		emit(r)
	}
}

// End ends the interval: what is held becomes one record per key, in order of
// arrival, and the aggregator is empty again. emit must not keep its argument.
func (a *Aggregator) End(emit func(*Record)) {
	for i := range a.entries {
		if a.entries[i].Packets > 0 {
			emit(&a.entries[i])
		}
	}
	// After a flood, give the memory back.
	if len(a.entries) > 1024 {
		a.index, a.sources, a.entries = make(map[refusalKey]int32), make(map[netip.Addr]int), nil
		return
	}
	clear(a.index)
	clear(a.sources)
	clear(a.entries)
	a.entries = a.entries[:0]
}

// wallTimes converts the times of r to wall clock time, given one moment in
// both: the length of time between them stays what the monotonic clock
// measured, so that a step of the wall clock can move both and never swap
// them. Times after the moment count as the moment.
func wallTimes(l *Line, now clock.Mono) {
	now = max(now, 0)
	last := min(max(l.Last, 0), now) // what no clock tells must not overflow
	first := min(max(l.First, 0), last)
	l.Start = l.Made.Add(-now.Sub(first))
	l.End = l.Made.Add(-now.Sub(last))
}
