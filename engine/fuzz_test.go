package engine

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"github.com/fe919326/spillway/nat"
)

// fuzzRig is a rig with one flow of each kind, the same before every input.
type fuzzRig struct {
	*rig
	batch  *packet.Batch
	inputs int
	ports  map[string]uint16 // outside ports of the flows
}

func newFuzzRig(f *testing.F) *fuzzRig {
	r := &fuzzRig{rig: newRig(f), batch: packet.NewBatch()}
	r.begin()
	return r
}

// begin forgets every flow and makes the known ones.
func (r *fuzzRig) begin() {
	for _, t := range []*flowtable.Table{r.slot().table, r.host.host.Load().flows} {
		var all []flowtable.Ref
		t.All(func(ref flowtable.Ref, _ *flowtable.Entry) bool { all = append(all, ref); return true })
		for _, ref := range all {
			t.Remove(ref)
		}
	}
	r.ports = make(map[string]uint16)
	must := func(name string, o outcome) {
		if o.reason != packet.OK {
			r.t.Fatalf("%s is refused at %s: %v", name, o.at, o.reason)
		}
		p := parse(r.t, o.data)
		r.ports[name] = p.SrcPort
	}
	for _, f := range families() {
		r.ports["tcp"+f.name] = r.handshake(f, 4000)
		must("udp"+f.name, r.task(taskPort, pkt.UDP(ap(f.task, 4000), ap(f.server, 53), []byte("q"))))
		must("icmp"+f.name, r.task(taskPort, pkt.Echo(f.task, f.server, 9, 1, pkt.Request, nil)))
		must("other"+f.name, r.task(otherPort, pkt.UDP(ap(f.other, 4000), ap(f.server, 53), []byte("q"))))
	}
}

// input is one packet with its offload state, and where it comes in.
type input struct {
	data  []byte
	gso   packet.GSO
	from  uint32 // port or peer
	whole bool   // its checksums are right, and none of them is partial
}

// feed puts in into a batch of its own, or returns nil if it is no packet.
func (r *fuzzRig) feed(in *input) *packet.Packet {
	if r.inputs++; r.inputs%4096 == 0 { // before any flow idles out
		r.begin()
	}
	r.clock.Advance(time.Millisecond) // rates are no subject here
	r.batch.Reset()
	if len(in.data) > packet.MaxPacket {
		return nil
	}
	pk := r.batch.Append(in.data)
	if pk == nil {
		return nil
	}
	pk.GSO, pk.Port, pk.Peer = in.gso, in.from, in.from
	in.whole = in.gso == (packet.GSO{}) && pkt.Check(in.data) == nil
	return pk
}

// fuzz runs check with every input. A check that lets a packet pass returns
// true: then the flows are made anew.
func fuzz(f *testing.F, r *fuzzRig, seeds []input, check func(*testing.T, input) bool) {
	for _, s := range seeds {
		g := s.gso
		bits := uint8(0)
		if g.Partial {
			bits |= 1
		}
		if g.Verified {
			bits |= 2
		}
		f.Add(s.data, uint8(g.Type), bits, g.HdrLen, g.Size, g.CsumStart, g.CsumOffset, uint8(s.from))
	}
	f.Fuzz(func(t *testing.T, data []byte, typ, bits uint8, hdrLen, size, start, offset uint16, from uint8) {
		in := input{data: data, from: uint32(from), gso: packet.GSO{
			Type: packet.GSOType(typ), Partial: bits&1 != 0, Verified: bits&2 != 0,
			HdrLen: hdrLen, Size: size, CsumStart: start, CsumOffset: offset,
		}}
		r.t = t
		if check(t, in) {
			r.begin()
		}
	})
}

// mustBeCounted fails unless exactly one reason was counted for a refusal.
func mustBeCounted(t *testing.T, before, after [packet.NumReasons]uint64) {
	t.Helper()
	n := 0
	for r := range before {
		if after[r] == before[r] {
			continue
		}
		if n++; Reason(r) == packet.OK || Reason(r) == packet.Undecided {
			t.Errorf("a dropped packet is counted as %v", Reason(r))
		}
	}
	if n != 1 {
		t.Errorf("a dropped packet is counted under %d reasons, want 1", n)
	}
}

// mustAnswer checks what the engine itself says about a refused packet: at
// most one packet, right in itself, to the sender of the packet only.
func mustAnswer(t *testing.T, in input, replies *packet.Batch) {
	t.Helper()
	if len(replies.Packets) == 0 {
		return
	}
	if len(replies.Packets) > 1 {
		t.Errorf("%d answers to one packet", len(replies.Packets))
	}
	a := &replies.Packets[0]
	if err := pkt.Check(a.Data); err != nil {
		t.Errorf("the answer is wrong: %v", err)
	}
	p, q := parse(t, a.Data), new(packet.Parsed)
	if r := q.Parse(&packet.Packet{Data: bytes.Clone(in.data), GSO: in.gso}); r != packet.OK && len(q.Data) == 0 {
		t.Errorf("a packet that is none (%v) was answered", r)
	}
	if p.Dst != q.Src {
		t.Errorf("%v is told about a packet of %v", packet.ToNetip(p.Dst), packet.ToNetip(q.Src))
	}
	if q.IsICMPError() || p.Flags&packet.RST != 0 && q.Flags&packet.RST != 0 {
		t.Error("an error or a reset was answered")
	}
}

// mustBeRight checks a packet that passed: it parses, and as wire packets it
// has right checksums, if it came with one that anybody vouches for.
func mustBeRight(t *testing.T, in input, pk *packet.Packet) *packet.Parsed {
	t.Helper()
	p := new(packet.Parsed)
	if r := p.Parse(pk); r != packet.OK {
		t.Fatalf("what passed does not parse: %v", r)
	}
	var cut packet.Segmenter
	if r := cut.Start(pk); r != packet.OK {
		t.Fatalf("what passed cannot be cut: %v", r)
	}
	// A device that says that it has verified a checksum is believed.
	vouched := in.whole || in.gso.Partial || in.gso.Type != packet.GSONone
	buf := make([]byte, packet.MaxPacket)
	for n, more := 0, true; more; {
		n, more = cut.Next(buf)
		if err := pkt.Check(buf[:n]); err != nil && vouched {
			t.Fatalf("what passed is wrong: %v\n% x", err, buf[:n])
		}
	}
	return p
}

// flowOf is the entry that a packet, or what an ICMP error quotes, belongs to,
// and the direction of the packet itself.
func flowOf(table *flowtable.Table, p *packet.Parsed) (*flowtable.Entry, flowtable.Direction) {
	k := flowtable.TupleOf(p)
	if p.IsICMPError() {
		quoted, r := nat.EmbeddedTuple(p)
		if r != packet.OK {
			return nil, 0
		}
		k = quoted.Mirror()
	}
	ref, dir := table.Lookup(&k)
	if ref == 0 {
		return nil, 0
	}
	return table.Entry(ref), dir
}

// innerOf is the addresses of the task at a port.
func innerOf(port uint32) []netip.Addr {
	switch port {
	case taskPort:
		return []netip.Addr{task4, task6}
	case otherPort:
		return []netip.Addr{other4, other6}
	}
	return nil
}

func isInner(port uint32, a packet.Addr) bool {
	for _, ip := range innerOf(port) {
		if packet.AddrFrom(ip) == a {
			return true
		}
	}
	return false
}

func isOutside(a packet.Addr) bool {
	return a == packet.AddrFrom(outside4) || a == packet.AddrFrom(outside6)
}

// FuzzHostOutbound: what a task's device hands over.
func FuzzHostOutbound(f *testing.F) {
	r := newFuzzRig(f)
	fuzz(f, r, outboundSeeds(taskPort, otherPort), func(t *testing.T, in input) bool {
		pk := r.feed(&in)
		if pk == nil {
			return false
		}
		v := r.host.host.Load()
		before := r.hostDrops(in.from)
		r.hostW.hostOutbound(v, r.batch)
		if len(pk.Data) == 0 {
			mustBeCounted(t, before, r.hostDrops(in.from))
			mustAnswer(t, in, r.hostW.replies)
			for _, a := range r.hostW.replies.Packets {
				if a.Port != in.from {
					t.Errorf("port %d is told about a packet of port %d", a.Port, in.from)
				}
			}
			return false
		}
		if !bytes.HasPrefix(in.data, pk.Data) { // but for what lies behind its end
			t.Error("the host changed a packet")
		}
		p := mustBeRight(t, input{}, pk)
		if !isInner(in.from, p.Src) {
			t.Errorf("port %d sends as %v", in.from, packet.ToNetip(p.Src))
		}
		k := flowtable.TupleOf(p)
		if p.IsICMPError() {
			if quoted, reason := nat.EmbeddedTuple(p); reason == packet.OK {
				k = quoted.Mirror()
			}
		}
		ref, dir := v.flows.Lookup(&k)
		if e := v.flows.Entry(ref); ref == 0 || e == nil || dir != flowtable.Outbound || e.Task() != in.from {
			t.Errorf("a packet of no flow of port %d passed", in.from)
		}
		return true
	})
}

// FuzzEndpointOutbound: what a peer sends through the tunnel.
func FuzzEndpointOutbound(f *testing.F) {
	r := newFuzzRig(f)
	fuzz(f, r, outboundSeeds(hostPeer, hostPeer+1), func(t *testing.T, in input) bool {
		pk := r.feed(&in)
		if pk == nil {
			return false
		}
		before := r.egressDrops()
		r.out.egressOutbound(r.egress.egress.Load(), r.batch)
		if len(pk.Data) == 0 {
			mustBeCounted(t, before, r.egressDrops())
			mustAnswer(t, in, r.out.replies)
			for _, a := range r.out.replies.Packets {
				if a.Peer != in.from {
					t.Errorf("peer %d is told about a packet of peer %d", a.Peer, in.from)
				}
			}
			return false
		}
		if in.from != hostPeer || pk.Port != subnetPort {
			t.Errorf("a packet of peer %d left by port %d", in.from, pk.Port)
		}
		p := mustBeRight(t, in, pk)
		was := new(packet.Parsed)
		if reason := was.Parse(&packet.Packet{Data: in.data, GSO: in.gso}); reason != packet.OK {
			t.Fatalf("what does not parse (%v) passed", reason)
		}
		if inner := r.egress.egress.Load().pools; isOutside(p.Dst) || inner[0].contains(p.Dst) || inner[1].contains(p.Dst) {
			t.Errorf("a packet to %v left: it is ours", packet.ToNetip(p.Dst))
		}
		if !isOutside(p.Src) || p.Dst != was.Dst || p.TTL != was.TTL-1 {
			t.Errorf("left as %v to %v with TTL %d", packet.ToNetip(p.Src), packet.ToNetip(p.Dst), p.TTL)
		}
		k := flowtable.TupleOf(p)
		if p.IsICMPError() {
			// It quotes an answer as the endpoint got it.
			k, _ = nat.EmbeddedTuple(p)
			k = k.Mirror()
		}
		k = k.Mirror()
		ref, dir := r.slot().table.Lookup(&k)
		if e := r.slot().table.Entry(ref); ref == 0 || e == nil || dir != flowtable.Inbound || e.Inner().Src != was.Src {
			t.Errorf("what left belongs to no flow of %v", packet.ToNetip(was.Src))
		}
		return true
	})
}

// FuzzEndpointInbound: what hosts of the subnet send to the endpoint.
func FuzzEndpointInbound(f *testing.F) {
	r := newFuzzRig(f)
	fuzz(f, r, r.inboundSeeds(), func(t *testing.T, in input) bool {
		pk := r.feed(&in)
		if pk == nil {
			return false
		}
		flows, before := r.slot().table.Len(), r.egressDrops()
		r.in.egressInbound(r.egress.egress.Load(), r.batch)
		if n := r.slot().table.Len(); n > flows {
			t.Error("the subnet began a flow")
		}
		if len(pk.Data) == 0 {
			mustBeCounted(t, before, r.egressDrops())
			mustAnswer(t, in, r.in.replies)
			for _, a := range r.in.replies.Packets {
				p := parse(t, a.Data)
				if a.Port != in.from || !p.IsICMPError() || p.Version == 4 && (p.Type != 3 || p.Code != 4) || p.Version == 6 && p.Type != 2 {
					t.Errorf("the subnet is answered with protocol %d type %d code %d at port %d", p.Proto, p.Type, p.Code, a.Port)
				}
			}
			return false
		}
		if in.from != subnetPort {
			t.Errorf("a packet of port %d passed", in.from)
		}
		p := mustBeRight(t, in, pk)
		if !isInner(taskPort, p.Dst) && !isInner(otherPort, p.Dst) {
			t.Errorf("a packet to %v passed", packet.ToNetip(p.Dst))
		}
		was := new(packet.Parsed)
		if reason := was.Parse(&packet.Packet{Data: in.data, GSO: in.gso}); reason != packet.OK {
			t.Fatalf("what does not parse (%v) passed", reason)
		}
		e, dir := flowOf(r.slot().table, was)
		if e == nil || dir != flowtable.Inbound || e.Inner().Src != p.Dst {
			t.Errorf("a packet of no flow of %v passed", packet.ToNetip(p.Dst))
		}
		if !p.IsICMPError() && (p.Src != e.Inner().Dst || p.SrcPort != e.Inner().DstPort && p.Proto != packet.ProtoICMP && p.Proto != packet.ProtoICMPv6) {
			t.Errorf("%v:%d answers for %v:%d", packet.ToNetip(p.Src), p.SrcPort, packet.ToNetip(e.Inner().Dst), e.Inner().DstPort)
		}
		return true
	})
}

// FuzzHostInbound: what an egress, even one that has been taken over, sends
// through the tunnel.
func FuzzHostInbound(f *testing.F) {
	r := newFuzzRig(f)
	fuzz(f, r, r.hostInboundSeeds(), func(t *testing.T, in input) bool {
		pk := r.feed(&in)
		if pk == nil {
			return false
		}
		v := r.host.host.Load()
		flows, before := v.flows.Len(), r.hostDrops(0)
		r.back.hostInbound(v, r.batch)
		if n := v.flows.Len(); n > flows {
			t.Error("the tunnel began a flow")
		}
		if len(pk.Data) == 0 {
			mustBeCounted(t, before, r.hostDrops(0))
			return false
		}
		if !bytes.HasPrefix(in.data, pk.Data) { // but for what lies behind its end
			t.Error("the host changed a packet")
		}
		p := mustBeRight(t, input{}, pk)
		e, dir := flowOf(v.flows, p)
		if e == nil || dir != flowtable.Inbound || e.Task() != pk.Port || !isInner(pk.Port, p.Dst) {
			t.Errorf("a packet to %v is delivered at port %d", packet.ToNetip(p.Dst), pk.Port)
		}
		return true
	})
}
