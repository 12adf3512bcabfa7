package engine

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// sweepSteps is in how many steps of housekeeping a full table is swept: once
// a second. An outside port is free again only after its flow was swept.
const sweepSteps = 10

// sweep ends flows that idled out, a few of each table at a time.
func (e *Engine) sweep(now clock.Mono) {
	for _, t := range e.tables() {
		t.Sweep(now, max(e.cfg.MaxFlows/sweepSteps, 8192))
	}
}

func (e *Engine) tables() []*flowtable.Table {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*flowtable.Table
	if e.flows != nil {
		out = append(out, e.flows)
	}
	for _, s := range e.slots {
		out = append(out, s.table)
	}
	return out
}

// Endpoints returns the endpoints this egress serves, sorted by id.
func (e *Engine) Endpoints() []api.EndpointStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	byID := make(map[string]*api.EndpointStatus)
	for _, s := range e.slots {
		st := byID[s.key.endpoint]
		if st == nil {
			st = &api.EndpointStatus{Endpoint: *s.endpoint.Load(), Drops: make(map[string]uint64)}
			st.Secret = nil
			byID[s.key.endpoint] = st
		}
		st.Flows += s.table.Len()
		st.Packets.Out += s.out.packets.Load()
		st.Packets.In += s.in.packets.Load()
		st.Bytes.Out += s.out.bytes.Load()
		st.Bytes.In += s.in.bytes.Load()
		for reason, n := range s.drops.byReason() {
			st.Drops[reason] += n
		}
	}
	out := make([]api.EndpointStatus, 0, len(byID))
	for _, st := range byID {
		out = append(out, *st)
	}
	slices.SortFunc(out, func(a, b api.EndpointStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Drops counts the packets refused before anybody could be named for them.
func (e *Engine) Drops() map[string]uint64 { return e.drops.byReason() }

// liveSlots returns the endpoint addresses that are served, in order.
func (e *Engine) liveSlots() []*slot {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Collect(maps.Values(e.slots))
	slices.SortFunc(out, func(a, b *slot) int {
		return cmp.Or(cmp.Compare(a.key.endpoint, b.key.endpoint), cmp.Compare(a.key.index, b.key.index))
	})
	return out
}

// Flows yields every live flow of this egress. It may be slow: neither the path
// waits for it nor Run's end, after which it yields nothing more.
func (e *Engine) Flows() iter.Seq[api.Flow] {
	return func(yield func(api.Flow) bool) {
		now, wall := e.clock.Mono(), e.clock.Wall()
		for _, s := range e.liveSlots() {
			for _, ref := range s.refs() {
				f, ok := s.flow(ref, now, wall)
				if ok && !yield(f) {
					return
				}
			}
		}
	}
}

// refs returns what is in the table now, nothing once it is closed.
func (s *slot) refs() []flowtable.Ref {
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed {
		return nil
	}
	out := make([]flowtable.Ref, 0, s.table.Len())
	s.table.All(func(ref flowtable.Ref, _ *flowtable.Entry) bool {
		out = append(out, ref)
		return true
	})
	return out
}

// flow returns one of refs as people see it, unless it ended meanwhile.
func (s *slot) flow(ref flowtable.Ref, now clock.Mono, wall time.Time) (api.Flow, bool) {
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed {
		return api.Flow{}, false
	}
	f := s.table.Entry(ref)
	if f == nil {
		return api.Flow{}, false
	}
	return apiFlow(s, f, now, wall), true
}

// close ends the table. Workers must have let go of it; whoever reads it for
// people is waited for.
func (s *slot) close() error {
	s.open.Lock()
	defer s.open.Unlock()
	s.closed = true
	return s.table.Close()
}

// apiFlow is f as people see it.
func apiFlow(s *slot, f *flowtable.Entry, now clock.Mono, wall time.Time) api.Flow {
	in, c := f.Inner(), f.Counters()
	outside, port := f.Outside()
	return api.Flow{
		Endpoint: s.key.endpoint,
		Task:     packet.ToNetip(in.Src).String(),
		Protocol: protocolName(in.Proto),
		Inner:    sideOf(in.Src, in.SrcPort),
		Outside:  sideOf(outside, port),
		Remote:   sideOf(in.Dst, in.DstPort),
		State:    f.State().String(),
		Reason:   packet.OK.String(),
		Packets:  api.Counters{Out: c.OutPackets, In: c.InPackets},
		Bytes:    api.Counters{Out: c.OutBytes, In: c.InBytes},
		Start:    wall.Add(-now.Sub(f.Created())),
		Last:     wall.Add(-now.Sub(f.Last())),
		IdleFor:  now.Sub(f.Last()).Seconds(),
	}
}

// protocolName is the name of an IANA protocol number, or the number.
func protocolName(p uint8) string {
	switch p {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	case packet.ProtoICMP:
		return "icmp"
	case packet.ProtoICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}
