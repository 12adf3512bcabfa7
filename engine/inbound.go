package engine

import (
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/nat"
)

// The way back, at the endpoint:
//
//	device → parse → flow table (only what exists) → nat → tunnel
//
// and on the host:
//
//	tunnel → parse → flow table (only what exists) → device
//
// The subnet never gets an answer to what is refused, but for one: a packet
// of a live flow that is too big for the tunnel and must not be cut.

// egressInboundLoop carries what the subnets answer into the tunnel.
func (e *Engine) egressInboundLoop(w *worker) error {
	b := packet.NewBatch()
	for {
		b.Reset()
		if err := e.cfg.Link.Read(b); err != nil {
			return err
		}
		v := e.egress.Load()
		w.egressInbound(v, b)
		if len(w.replies.Packets) > 0 {
			e.cfg.Link.Write(w.replies)
		}
		if v.tunnel != nil {
			v.tunnel.Seal(b)
		}
	}
}

// egressInbound decides over a batch from the subnets. Packets that pass
// carry the task's inner address as destination.
// borrowed: b's bytes until it is sealed.
func (w *worker) egressInbound(v *egressView, b *packet.Batch) {
	now, tap := w.clock.Mono(), w.engine.tap.Load()
	w.replies.Reset()
	for i := range b.Packets {
		pk := &b.Packets[i]
		r := w.egressInboundOne(v, pk, now)
		if tap != nil {
			(*tap)(EndpointInbound, pk, r)
		}
		if r != packet.OK {
			pk.Drop()
		}
	}
}

func (w *worker) egressInboundOne(v *egressView, pk *packet.Packet, now clock.Mono) Reason {
	p := &w.parsed
	parsed := p.Parse(pk)
	s := v.outside[p.Dst]
	if s == nil || s.port != pk.Port {
		r := parsed
		if r == packet.OK {
			r = packet.NoRoute
		}
		w.engine.drops[r].Add(1)
		return r
	}
	r := parsed
	if r == packet.OK {
		r = w.backward(s, pk, now)
	}
	if r != packet.OK {
		s.drops[r].Add(uint64(max(p.Segments(), 1)))
		if len(p.Data) > 0 {
			w.engine.logRefusal(s, p, flowtable.Inbound, r)
		}
	}
	return r
}

// backward is the endpoint's decision about one packet from the subnet: it
// passes only as part of a flow that a task began.
func (w *worker) backward(s *slot, pk *packet.Packet, now clock.Mono) Reason {
	p := &w.parsed
	if r := fragmentRefused(p); r != packet.OK {
		return r
	}
	if p.IsICMPError() {
		return w.errorInbound(s, pk)
	}
	k := flowtable.TupleOf(p)
	ref, dir := s.table.Lookup(&k)
	if ref == 0 || dir != flowtable.Inbound {
		return packet.Unsolicited
	}
	if r := p.VerifyChecksum(); r != packet.OK {
		return r
	}
	pk.GSO.Verified = true
	if r := w.fitsTunnel(s, p); r != packet.OK {
		return r
	}
	flowtable.SegmentOf(p, &w.segment)
	if r := s.table.Observe(ref, flowtable.Inbound, &w.segment, now); r != packet.OK {
		if r == packet.FlowExpired {
			return packet.Unsolicited
		}
		return r
	}
	if !s.table.Load(ref, &w.flow) {
		return packet.Unsolicited
	}
	if r := p.DecrementTTL(); r != packet.OK {
		return r
	}
	if p.Proto == packet.ProtoTCP && p.Flags&packet.SYN != 0 {
		p.ClampMSS(s.mss(p.Version))
	}
	nat.RewriteDestination(p, w.flow.Inner.Src, w.flow.Inner.SrcPort)
	pk.Data, pk.Peer = p.Data, 0 // routed by its destination
	s.count(&s.in, p)
	return packet.OK
}

// fitsTunnel tells the sender of a packet that is larger than the tunnel's MTU
// and must not be fragmented (RFC 1191 section 4, RFC 8201 section 4).
// Datagrams that may be fragmented pass: the transport carries them.
func (w *worker) fitsTunnel(s *slot, p *packet.Parsed) Reason {
	size := len(p.Data)
	if p.GSO.Type != packet.GSONone {
		size = int(p.GSO.HdrLen) + int(p.GSO.Size)
	}
	if size <= s.mtu || !p.DontFragment() {
		return packet.OK
	}
	if from := p.Dst; s.limits.tooBig(w.clock.Mono()) {
		if out := w.reply(icmpTooBig, p, from, s.mtu); out != nil {
			out.Port = s.port
		}
	}
	return packet.TooBig
}

// errorInbound translates an ICMP error from the subnet about a packet that a
// task's flow sent (RFC 5508 section 4.1). It neither refreshes nor ends the
// flow.
func (w *worker) errorInbound(s *slot, pk *packet.Packet) Reason {
	p := &w.parsed
	if r := p.VerifyChecksum(); r != packet.OK {
		return r
	}
	quoted, r := nat.EmbeddedTuple(p)
	if r != packet.OK {
		return r
	}
	k := quoted.Mirror() // quoted: endpoint → remote; its answers are what the table knows
	ref, dir := s.table.Lookup(&k)
	if ref == 0 || dir != flowtable.Inbound {
		return packet.Unsolicited
	}
	f := s.table.Entry(ref)
	if f == nil {
		return packet.Unsolicited
	}
	if r := nat.RewriteErrorInbound(p, f); r != packet.OK {
		return r
	}
	if r := p.DecrementTTL(); r != packet.OK {
		return r
	}
	pk.GSO.Verified = true
	pk.Data, pk.Peer = p.Data, 0
	s.count(&s.in, p)
	return packet.OK
}

// hostInboundLoop carries what came out of a tunnel to the tasks.
func (e *Engine) hostInboundLoop(w *worker, t Tunnel) error {
	b := packet.NewBatch()
	for {
		b.Reset()
		if err := t.Open(b); err != nil {
			return err
		}
		w.hostInbound(e.host.Load(), b)
		e.cfg.Link.Write(b)
	}
}

// hostInbound decides over a batch that came out of a tunnel. Packets that
// pass get their task's port.
// borrowed: b's bytes until it is written.
func (w *worker) hostInbound(v *hostView, b *packet.Batch) {
	now, tap := w.clock.Mono(), w.engine.tap.Load()
	for i := range b.Packets {
		pk := &b.Packets[i]
		r := w.hostInboundOne(v, pk, now)
		if tap != nil {
			(*tap)(HostInbound, pk, r)
		}
		if r != packet.OK {
			w.engine.drops[r].Add(1)
			pk.Drop()
		}
	}
}

func (w *worker) hostInboundOne(v *hostView, pk *packet.Packet, now clock.Mono) Reason {
	p := &w.parsed
	if r := p.Parse(pk); r != packet.OK {
		return r
	}
	k := flowtable.TupleOf(p)
	if p.IsICMPError() {
		quoted, r := nat.EmbeddedTuple(p)
		if r != packet.OK {
			return r
		}
		k = quoted.Mirror()
	}
	if v.flows == nil {
		return packet.ShuttingDown
	}
	ref, dir := v.flows.Lookup(&k)
	if ref == 0 || dir != flowtable.Inbound {
		return packet.Unsolicited
	}
	if !v.flows.Load(ref, &w.flow) {
		return packet.Unsolicited
	}
	t := v.task(w.flow.Task)
	if t == nil || (p.Dst != t.inner4 && p.Dst != t.inner6) {
		return packet.NoRoute
	}
	if !p.IsICMPError() {
		flowtable.SegmentOf(p, &w.segment)
		if r := v.flows.Observe(ref, flowtable.Inbound, &w.segment, now); r != packet.OK {
			return r
		}
	}
	pk.Data, pk.Port = p.Data, t.port
	t.count(&t.in, p)
	return packet.OK
}
