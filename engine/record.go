package engine

import (
	"context"
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// logRefusal tells the flow log, and who watches, of a packet that was
// refused at an endpoint: a task's, or a stranger's from the subnet. It never
// waits.
func (e *Engine) logRefusal(s *slot, p *packet.Parsed, d flowtable.Direction, r Reason) {
	watched := e.watchers.any()
	if e.cfg.FlowLog == nil && !watched {
		return
	}
	packets, bytes := uint64(max(p.Segments(), 1)), wireBytes(p)
	rec := flowlog.Record{
		Endpoint: s.log.Load(), Packets: packets, Bytes: bytes,
		Proto: p.Proto, ICMPType: p.Type, ICMPCode: p.Code, TCPFlags: p.Flags,
		Direction: flowlog.Egress, Action: flowlog.Reject, Reason: r,
	}
	if d == flowtable.Outbound {
		outside := s.v4
		if p.Version == 6 {
			outside = s.v6
		}
		rec.Inner = sideOf(p.Src, p.SrcPort)
		rec.Outside = netip.AddrPortFrom(packet.ToNetip(outside), 0)
		rec.Remote = sideOf(p.Dst, p.DstPort)
	} else {
		rec.Direction = flowlog.Ingress
		rec.Outside = sideOf(p.Dst, p.DstPort)
		rec.Remote = sideOf(p.Src, p.SrcPort)
	}
	if e.cfg.FlowLog != nil {
		e.cfg.FlowLog.Record(&rec) // a record that is lost is counted by the log
	}
	if watched {
		now := e.clock.Wall()
		f := api.Flow{
			Endpoint: s.key.endpoint, Protocol: protocolName(p.Proto),
			Inner: rec.Inner, Outside: rec.Outside, Remote: rec.Remote, Reason: r.String(), Start: now, Last: now,
		}
		if d == flowtable.Outbound {
			f.Task = rec.Inner.Addr().String()
			f.Packets.Out, f.Bytes.Out = packets, bytes
		} else {
			f.Packets.In, f.Bytes.In = packets, bytes
		}
		e.watchers.tell(f)
	}
}

// sideOf is one side of a packet as logs show it. The identifier of an ICMP
// echo stands for the port of the side that asked.
func sideOf(a packet.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(packet.ToNetip(a), port)
}

// wireBytes is the IP bytes of p on the wire, where each segment of a
// super-packet has headers of its own.
func wireBytes(p *packet.Parsed) uint64 {
	return uint64(len(p.Data)) + uint64(max(p.Segments(), 1)-1)*uint64(p.GSO.HdrLen)
}

// logged is what the flow log was told of a flow so far. It lies in the
// entry's three words: four counters of 48 bits.
type logged = flowtable.Counters

const mask48 = 1<<48 - 1

func loadLogged(f *flowtable.Entry) (c logged) {
	w := f.Words()
	a, b, d := w[0].Load(), w[1].Load(), w[2].Load()
	c.OutPackets = a & mask48
	c.InPackets = b & mask48
	c.OutBytes = d & mask48
	c.InBytes = a>>48 | b>>48<<16 | d>>48<<32
	return c
}

func storeLogged(f *flowtable.Entry, c logged) {
	w := f.Words()
	w[0].Store(c.OutPackets&mask48 | c.InBytes<<48)
	w[1].Store(c.InPackets&mask48 | c.InBytes>>16<<48)
	w[2].Store(c.OutBytes&mask48 | c.InBytes>>32<<48)
}

// sampleOf is what f carried since it was last sampled, and notes it as
// sampled. ok is false if it carried nothing.
func sampleOf(s *slot, f *flowtable.Entry) (out flowlog.FlowSample, ok bool) {
	s.sampling.Lock() // a flow may end while the interval is sampled
	defer s.sampling.Unlock()
	before, now := loadLogged(f), f.Counters()
	storeLogged(f, now)
	out = flowlog.FlowSample{
		OutPackets: (now.OutPackets - before.OutPackets) & mask48, OutBytes: (now.OutBytes - before.OutBytes) & mask48,
		InPackets: (now.InPackets - before.InPackets) & mask48, InBytes: (now.InBytes - before.InBytes) & mask48,
	}
	if out.OutPackets == 0 && out.InPackets == 0 {
		return out, false
	}
	in := f.Inner()
	addr, port := f.Outside()
	out.Endpoint = s.log.Load()
	out.Inner = sideOf(in.Src, in.SrcPort)
	out.Outside = sideOf(addr, port)
	out.Remote = sideOf(in.Dst, in.DstPort)
	out.Proto = in.Proto
	if before == (logged{}) {
		out.First = f.Created()
	}
	out.Last = f.Last()
	out.OutFlags, out.InFlags = f.TCPFlags(flowtable.Outbound), f.TCPFlags(flowtable.Inbound)
	if set := s.policy.Load(); set != nil && set.Version() == f.Policy() {
		rule := set.Rule(f.Rule())
		out.Group, out.Rule = rule.Group, int32(rule.Index)
	}
	return out, true
}

// logEnd tells the flow log what a flow carried that is being removed, and
// who watches that it has ended.
func (e *Engine) logEnd(s *slot, f *flowtable.Entry) {
	if e.cfg.FlowLog != nil {
		if sample, ok := sampleOf(s, f); ok {
			e.cfg.FlowLog.Sample(&sample)
		}
	}
	if e.watchers.any() {
		e.watchers.tell(apiFlow(s, f, e.clock.Mono(), e.clock.Wall()))
	}
}

// sampleFlows tells the flow log what every live flow carried in the interval.
// It waits for the log, not for the path.
func (e *Engine) sampleFlows(ctx context.Context, _ clock.Mono) {
	if e.cfg.FlowLog == nil {
		return
	}
	for _, s := range e.liveSlots() {
		s.table.All(func(_ flowtable.Ref, f *flowtable.Entry) bool {
			sample, ok := sampleOf(s, f)
			return !ok || e.cfg.FlowLog.SampleWait(ctx, &sample) == nil
		})
	}
	if err := e.cfg.FlowLog.EndInterval(ctx); err != nil && ctx.Err() == nil {
		e.log.Warn("flow log", "err", err)
	}
}
