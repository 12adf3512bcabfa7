package engine

import (
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/nat"
)

// The way out, on the host:
//
//	device → parse → source check → flow table (outbound-only) → tunnel
//
// and at the endpoint:
//
//	tunnel → prefix check → parse → flow table → policy (first packet) → nat → device
//
// Every hop returns a Reason; whatever is not OK is dropped and counted.

// hostOutboundLoop carries what tasks send into the tunnels.
func (e *Engine) hostOutboundLoop(w *worker) error {
	b := packet.NewBatch()
	for {
		b.Reset()
		if err := e.cfg.Link.Read(b); err != nil {
			return err
		}
		v := e.host.Load()
		w.hostOutbound(v, b)
		w.sealByTunnel(v, b)
	}
}

// hostOutbound decides over a batch from tasks' devices. Packets that pass
// keep their Data and get their tunnel's number as Peer.
// borrowed: b's bytes until it is sealed.
func (w *worker) hostOutbound(v *hostView, b *packet.Batch) {
	now, tap := w.clock.Mono(), w.engine.tap.Load()
	w.replies.Reset()
	for i := range b.Packets {
		pk := &b.Packets[i]
		t := v.task(pk.Port)
		r := w.hostOutboundOne(v, t, pk, now)
		if tap != nil {
			(*tap)(HostOutbound, pk, r)
		}
		if r != packet.OK {
			w.refuseOnHost(t, r, now)
			pk.Drop()
		}
	}
	if len(w.replies.Packets) > 0 {
		w.engine.cfg.Link.Write(w.replies)
	}
}

func (w *worker) hostOutboundOne(v *hostView, t *task, pk *packet.Packet, now clock.Mono) Reason {
	p := &w.parsed
	if t == nil {
		p.Proto, p.Data = 0, nil
		return packet.NoRoute
	}
	if r := p.Parse(pk); r != packet.OK {
		return r
	}
	if p.Src != t.inner4 && p.Src != t.inner6 { // identity before state
		return packet.SpoofedSource
	}
	pk.Peer = t.tunnel
	t.count(&t.out, p)
	if r := fragmentRefused(p); r != packet.OK {
		return r
	}
	flowtable.SegmentOf(p, &w.segment)
	if p.IsICMPError() {
		return w.hostErrorOutbound(v, t, p)
	}
	k := flowtable.TupleOf(p)
	if ref, dir := v.flows.Lookup(&k); ref != 0 {
		if dir != flowtable.Outbound {
			return packet.WrongDirection
		}
		if r := v.flows.Observe(ref, flowtable.Outbound, &w.segment, now); r != packet.FlowExpired && r != packet.NoFlow {
			return r
		} // it is over: this may begin the next
	}
	if p.Proto != packet.ProtoTCP { // TCP may: a restarted host resets nobody
		if r := mayStart(p); r != packet.OK {
			return r
		}
	}
	f := flowtable.Flow{Inner: k, Outside: k.Src, OutsidePort: k.SrcPort, Task: t.port}
	ref, r := v.flows.Insert(&f, &w.segment, now)
	if r == packet.FlowExists { // another worker was first: this is the flow's second packet
		r = v.flows.Observe(ref, flowtable.Outbound, &w.segment, now)
	}
	return r
}

// hostErrorOutbound lets a task's ICMP error pass if it is about an answer of
// one of the task's own flows (RFC 5508 section 4.2).
func (w *worker) hostErrorOutbound(v *hostView, t *task, p *packet.Parsed) Reason {
	quoted, r := nat.EmbeddedTuple(p)
	if r != packet.OK {
		return r
	}
	ref, dir := v.flows.Lookup(&quoted)
	if ref == 0 || dir != flowtable.Inbound {
		return packet.NoFlow
	}
	if f := v.flows.Entry(ref); f == nil || f.Task() != t.port {
		return packet.NoFlow
	}
	return packet.OK
}

// sealByTunnel hands b to the tunnels its packets are for. Nearly always that
// is one, and the batch's memory changes hands without a copy.
func (w *worker) sealByTunnel(v *hostView, b *packet.Batch) {
	for {
		first := nextPacket(b, 0)
		if first < 0 {
			return
		}
		id := b.Packets[first].Peer
		rest := -1
		for i := first + 1; i < len(b.Packets); i++ {
			if len(b.Packets[i].Data) != 0 && b.Packets[i].Peer != id {
				rest = i
				break
			}
		}
		if rest < 0 {
			w.sealTo(v, id, b)
			return
		}
		w.side.Reset()
		for i := first; i < len(b.Packets); i++ {
			pk := &b.Packets[i]
			if len(pk.Data) == 0 || pk.Peer != id {
				continue
			}
			n := w.side.Append(pk.Data)
			if n == nil {
				break // the next round takes it
			}
			n.GSO, n.Port = pk.GSO, pk.Port
			pk.Drop()
		}
		w.sealTo(v, id, w.side)
	}
}

func (w *worker) sealTo(v *hostView, id uint32, b *packet.Batch) {
	t := v.tunnel(id)
	if t == nil {
		w.engine.drops[packet.NoRoute].Add(uint64(len(b.Packets)))
		b.Reset()
		return
	}
	for i := range b.Packets {
		b.Packets[i].Peer = 0 // one peer: the egress; routed by destination
	}
	t.Seal(b)
}

// nextPacket returns the index of the first packet from i on that was not
// dropped, or -1.
func nextPacket(b *packet.Batch, i int) int {
	for ; i < len(b.Packets); i++ {
		if len(b.Packets[i].Data) != 0 {
			return i
		}
	}
	return -1
}

// egressOutboundLoop carries what came out of the tunnel onto the subnets.
func (e *Engine) egressOutboundLoop(w *worker, t Tunnel) error {
	b := packet.NewBatch()
	for {
		b.Reset()
		if err := t.Open(b); err != nil {
			return err
		}
		w.egressOutbound(e.egress.Load(), b)
		e.cfg.Link.Write(b)
		if len(w.replies.Packets) > 0 {
			t.Seal(w.replies)
		}
	}
}

// egressOutbound decides over a batch that came out of the tunnel. Packets
// that pass carry the endpoint's address as source and the subnet's port.
// borrowed: b's bytes until it is written.
func (w *worker) egressOutbound(v *egressView, b *packet.Batch) {
	now, tap := w.clock.Mono(), w.engine.tap.Load()
	w.replies.Reset()
	for i := range b.Packets {
		pk := &b.Packets[i]
		r := w.egressOutboundOne(v, pk, now)
		if tap != nil {
			(*tap)(EndpointOutbound, pk, r)
		}
		if r != packet.OK {
			pk.Drop()
		}
	}
}

func (w *worker) egressOutboundOne(v *egressView, pk *packet.Packet, now clock.Mono) Reason {
	p := &w.parsed
	parsed := p.Parse(pk)
	d := v.delegation(p.Src)
	if d == nil || d.peer != pk.Peer { // identity before state
		r := packet.NotDelegated
		if d != nil {
			r = packet.SpoofedSource
		} else if parsed != packet.OK {
			r = parsed
		}
		w.engine.drops[r].Add(1)
		return r
	}
	s := d.slot
	r := parsed
	if r == packet.OK {
		r = w.forward(v, d, pk, now)
	}
	if r != packet.OK {
		w.refuseAtEndpoint(s, d, r, now)
	}
	return r
}

// forward is the endpoint's decision about one packet of a task: whether its
// flow is known or may begin, and its translation.
func (w *worker) forward(v *egressView, d *delegation, pk *packet.Packet, now clock.Mono) Reason {
	p, s := &w.parsed, d.slot
	if r := v.destination(p.Dst); r != packet.OK {
		return r
	}
	if r := fragmentRefused(p); r != packet.OK {
		return r
	}
	if r := p.VerifyChecksum(); r != packet.OK {
		return r
	}
	pk.GSO.Verified = true
	if p.IsICMPError() {
		return w.errorOutbound(s, pk)
	}
	flowtable.SegmentOf(p, &w.segment)
	k := flowtable.TupleOf(p)
	ref, dir := s.table.Lookup(&k)
	switch {
	case ref == 0:
		var r Reason
		if ref, r = w.admit(d, now); r != packet.OK {
			return r
		}
	case dir != flowtable.Outbound:
		return packet.WrongDirection
	default:
		r := s.table.Observe(ref, flowtable.Outbound, &w.segment, now)
		if r == packet.NoFlow || r == packet.FlowExpired { // it is over: a first packet may begin the next
			again, why := w.admit(d, now)
			if why != packet.NoFlow {
				ref, r = again, why
			}
		}
		if r != packet.OK {
			return r
		}
	}
	if !s.table.Load(ref, &w.flow) {
		return packet.FlowExpired
	}
	if r := p.DecrementTTL(); r != packet.OK {
		return r
	}
	if p.Proto == packet.ProtoTCP && p.Flags&packet.SYN != 0 {
		p.ClampMSS(s.mss(p.Version))
	}
	nat.RewriteSource(p, w.flow.Outside, w.flow.OutsidePort)
	pk.Data, pk.Port = p.Data, s.port
	s.count(&s.out, p)
	return packet.OK
}

// admit begins a flow, if it may begin, is allowed, and has room.
func (w *worker) admit(d *delegation, now clock.Mono) (flowtable.Ref, Reason) {
	p, s := &w.parsed, d.slot
	if r := mayStart(p); r != packet.OK {
		if p.Proto != packet.ProtoTCP || now >= s.looseUntil || p.Flags&packet.RST != 0 {
			return 0, r
		}
	}
	set := s.policy.Load()
	rule, r := set.Verdict(p)
	if r != packet.OK {
		return 0, r
	}
	t := d.task(p.Src)
	if !s.limits.newFlow(t, now) {
		return 0, packet.TaskRateLimit
	}
	ref, r := s.mapper.Admit(p, &w.segment, nat.Meta{Task: t, Rule: rule, Policy: set.Version()}, now)
	if r == packet.FlowExists { // another worker was first: this is the flow's second packet
		r = s.table.Observe(ref, flowtable.Outbound, &w.segment, now)
	}
	return ref, r
}

// errorOutbound translates a task's ICMP error about an answer it got.
func (w *worker) errorOutbound(s *slot, pk *packet.Packet) Reason {
	p := &w.parsed
	quoted, r := nat.EmbeddedTuple(p)
	if r != packet.OK {
		return r
	}
	// The quoted packet is an answer as the task saw it: its mirror is the
	// flow's own first tuple.
	k := quoted.Mirror()
	ref, dir := s.table.Lookup(&k)
	if ref == 0 || dir != flowtable.Outbound {
		return packet.NoFlow
	}
	f := s.table.Entry(ref)
	if f == nil || k.Src != p.Src { // an error about somebody else's flow
		return packet.SpoofedSource
	}
	if r := nat.RewriteErrorOutbound(p, f); r != packet.OK {
		return r
	}
	if r := p.DecrementTTL(); r != packet.OK {
		return r
	}
	pk.Data, pk.Port = p.Data, s.port
	s.count(&s.out, p)
	return packet.OK
}

// fragmentRefused drops fragments: they are recognised, but not yet carried.
func fragmentRefused(p *packet.Parsed) Reason {
	if p.Fragment {
		return packet.FragmentRefused
	}
	return packet.OK
}
