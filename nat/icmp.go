package nat

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
)

// EmbeddedTuple returns the tuple of the packet that the ICMP or ICMPv6 error
// p quotes, as that packet was sent: its mirror is what to look the flow up
// by. Destination unreachable, packet too big, time exceeded and parameter
// problem are read; everything that RFC 792 allows as a quote is, which is as
// little as eight bytes behind the IP header, IP options and extension headers
// skipped.
//
// It refuses (RFC 5508 REQ-3) with BadChecksum a quoted IPv4 header with a
// wrong checksum, with FragmentRefused the quote of a fragment without ports,
// with Truncated, BadHeader, BadExtension or RoutingHeader what cannot be read
// and with UnsupportedProtocol other ICMP messages and other protocols. The
// transport checksum of the quote is not looked at. p's own checksum must have
// been verified.
func EmbeddedTuple(p *packet.Parsed) (flowtable.Tuple, packet.Reason) {
	var q quote
	if r := q.parse(p); r != packet.OK {
		return flowtable.Tuple{}, r
	}
	return q.tuple, packet.OK
}

// MTUFloor is the lowest MTU in bytes that an ICMP "fragmentation needed" or
// "packet too big" from the subnet side may ask for. One that asks for less is
// refused as an attempt to slow a flow down.
type MTUFloor struct {
	V4 uint16 // default 552, as Linux's min_pmtu; at least 68 (RFC 791)
	V6 uint16 // default 1280, which is also the least (RFC 8200 section 5)
}

// The floors that MTUFloor's zero values stand for, and the least.
const (
	defaultFloor4, leastFloor4 = 552, 68
	defaultFloor6, leastFloor6 = 1280, 1280
)

// codeFragNeeded is "fragmentation needed and DF set" (RFC 792).
const codeFragNeeded = 4

// Check returns BadMTU if p is such an error and its MTU is below the floor,
// and OK otherwise.
func (f MTUFloor) Check(p *packet.Parsed) packet.Reason {
	mtu, ok := EmbeddedMTU(p)
	if !ok {
		return packet.OK
	}
	floor := uint16(defaultFloor6)
	if p.Version == header.IPv4Version {
		floor = defaultFloor4
		if f.V4 != 0 {
			floor = max(f.V4, leastFloor4)
		}
	} else if f.V6 != 0 {
		floor = max(f.V6, leastFloor6)
	}
	if mtu < uint32(floor) {
		return packet.BadMTU
	}
	return packet.OK
}

// EmbeddedMTU returns the MTU in bytes that p, an ICMP "fragmentation needed"
// (RFC 1191 section 4) or ICMPv6 "packet too big" (RFC 4443 section 3.2), tells.
// It is not ok if p is anything else.
func EmbeddedMTU(p *packet.Parsed) (mtu uint32, ok bool) {
	if !p.Transport || len(p.Data) < int(p.L4)+icmpHeader {
		return 0, false
	}
	switch {
	case p.Proto == protoICMP && header.ICMPv4Type(p.Type) == header.ICMPv4DstUnreachable &&
		p.Code == codeFragNeeded:
		return uint32(binary.BigEndian.Uint16(p.Data[p.L4+6:])), true
	case p.Proto == protoICMPv6 && header.ICMPv6Type(p.Type) == header.ICMPv6PacketTooBig:
		return binary.BigEndian.Uint32(p.Data[p.L4+4:]), true
	}
	return 0, false
}

// RewriteErrorInbound translates p, an ICMP error from the subnet side about
// a packet of the flow e, for the task: the quoted source becomes the inner
// address and port again, p's destination becomes the inner address. Type,
// code, p's source, the rest of the quote and RFC 4884 extensions stay as they
// are; the quoted IP and transport checksums and p's own are updated
// (RFC 5508 REQ-4).
//
// It changes nothing and returns NoFlow if p is not about e, OutOfWindow if it
// quotes a TCP segment that the flow does not have in flight, BadMTU if the MTU
// in it is below the default MTUFloor, and the reasons of EmbeddedTuple.
// The flow is neither refreshed nor ended by it: that is up to the caller not
// to do.
func RewriteErrorInbound(p *packet.Parsed, e *flowtable.Entry) packet.Reason {
	return RewriteErrorInboundMTU(p, e, MTUFloor{})
}

// RewriteErrorInboundMTU is RewriteErrorInbound with another floor.
func RewriteErrorInboundMTU(p *packet.Parsed, e *flowtable.Entry, floor MTUFloor) packet.Reason {
	var q quote
	if r := q.parse(p); r != packet.OK {
		return r
	}
	outside, _ := e.Outside()
	if q.tuple.Mirror() != e.Reply() || p.Dst != outside {
		return packet.NoFlow
	}
	if !q.inFlight(p, e) {
		return packet.OutOfWindow
	}
	if r := floor.Check(p); r != packet.OK {
		return r
	}
	inner := e.Inner()
	quoted := q.rewrite(p.Data, source, &inner.Src, inner.SrcPort)
	addr := setAddr(p.Data, p.Version, destination, &p.Dst, &inner.Src)
	p.Dst = inner.Src
	p.AdjustChecksum(addr, quoted)
	return packet.OK
}

// RewriteErrorOutbound translates p, an ICMP error from the task about an
// answer it got in the flow e, for the subnet side: the quoted destination
// becomes the outside address and port, and so does p's source (RFC 5508
// REQ-5).
//
// It changes nothing and returns SpoofedSource if p was not sent by the inner
// address of e, NoFlow if it is not about e, and the reasons of EmbeddedTuple.
func RewriteErrorOutbound(p *packet.Parsed, e *flowtable.Entry) packet.Reason {
	var q quote
	if r := q.parse(p); r != packet.OK {
		return r
	}
	inner := e.Inner()
	if q.tuple.Mirror() != inner {
		return packet.NoFlow
	}
	if p.Src != inner.Src {
		return packet.SpoofedSource
	}
	outside, port := e.Outside()
	quoted := q.rewrite(p.Data, destination, &outside, port)
	addr := setAddr(p.Data, p.Version, source, &p.Src, &outside)
	p.Src = outside
	p.AdjustChecksum(addr, quoted)
	return packet.OK
}

// inFlight reports whether the TCP segment that p quotes is one that the flow
// e has sent and that is not acknowledged, or a keepalive, which is one byte
// before (RFC 5927 section 4.1). It is true where nothing is known to the
// contrary.
func (q *quote) inFlight(p *packet.Parsed, e *flowtable.Entry) bool {
	if q.tuple.Proto != protoTCP {
		return true
	}
	una, nxt, ok := e.InFlight(flowtable.Outbound)
	seq := binary.BigEndian.Uint32(p.Data[q.l4+4:])
	return !ok || seq-(una-1) <= nxt-(una-1)
}
