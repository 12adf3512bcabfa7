package nat

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
)

// quote is where things are in the packet that an ICMP error quotes. Offsets
// are in the error packet's Data.
type quote struct {
	tuple   flowtable.Tuple // as sent
	version uint8
	icmp    uint8 // type of a quoted echo message
	ip      int   // the quoted IP header
	l4      int   // the quoted transport header, of which at least minQuote bytes are there
	end     int   // behind the last byte that belongs to the quoted packet
}

const (
	icmpHeader = 8 // of every error (RFC 792, RFC 4443)
	// minQuote is how much of the transport header every error quotes at least
	// (RFC 792). It holds the ports or the identifier, the TCP sequence number
	// and the UDP or ICMP checksum, not the TCP checksum.
	minQuote = 8
	// tcpSumEnd is how much of a TCP header must be there to hold its checksum.
	tcpSumEnd = header.TCPChecksumOffset + 2

	// The limits of a quoted chain of IPv6 extension headers are those of a
	// packet that is let out in the first place.
	maxExtensions     = 8
	maxExtensionBytes = 256
)

// parse reads the packet that p, an ICMP error, quotes. Anything but the quote
// of a first or only packet of TCP, UDP or echo is refused.
func (q *quote) parse(p *packet.Parsed) packet.Reason {
	if !p.Transport {
		return packet.FragmentRefused
	}
	unit, ok := quoteUnit(p)
	if !ok {
		return packet.UnsupportedProtocol
	}
	q.ip = int(p.L4) + icmpHeader
	q.end = len(p.Data)
	if q.end < q.ip {
		return packet.Truncated
	}
	// RFC 4884 section 4: where the length attribute is set, the quote ends
	// there and extensions follow. One that reaches behind the packet is an
	// old router's garbage in a field that was unused before.
	if unit.bytes != 0 {
		if n := int(p.Data[int(p.L4)+unit.offset]) * unit.bytes; n != 0 && q.ip+n <= q.end {
			q.end = q.ip + n
		}
	}
	q.version = p.Version
	if p.Version == header.IPv4Version {
		return q.parse4(p.Data)
	}
	return q.parse6(p.Data)
}

// lengthUnit is where an ICMP error has the length of its quote, and what it
// counts. bytes is 0 for errors without one.
type lengthUnit struct{ offset, bytes int }

// quoteUnit returns the length attribute of the errors that may be translated.
// Redirects and source quenches are not among them: they are no business of
// hosts behind a router (RFC 1812 section 5.2.7.2, RFC 6633).
func quoteUnit(p *packet.Parsed) (lengthUnit, bool) {
	switch p.Proto {
	case protoICMP:
		switch header.ICMPv4Type(p.Type) {
		case header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
			return lengthUnit{5, 4}, true
		}
	case protoICMPv6:
		switch header.ICMPv6Type(p.Type) {
		case header.ICMPv6DstUnreachable, header.ICMPv6TimeExceeded:
			return lengthUnit{4, 8}, true
		case header.ICMPv6PacketTooBig, header.ICMPv6ParamProblem:
			return lengthUnit{}, true
		}
	}
	return lengthUnit{}, false
}

// parse4 reads a quoted IPv4 packet.
func (q *quote) parse4(b []byte) packet.Reason {
	h := header.IPv4(b[q.ip:q.end])
	if len(h) < header.IPv4MinimumSize {
		return packet.Truncated
	}
	n := int(h.HeaderLength()) // options are skipped, RFC 5508 REQ-3b
	if b[q.ip]>>4 != header.IPv4Version || n < header.IPv4MinimumSize {
		return packet.BadHeader
	}
	if n > len(h) {
		return packet.Truncated
	}
	if packet.Checksum(h[:n], 0) != 0xFFFF {
		return packet.BadChecksum // RFC 5508 REQ-3a
	}
	if h.FragmentOffset() != 0 {
		return packet.FragmentRefused // no ports: nobody can tell whose it is
	}
	q.end = min(q.end, q.ip+int(h.TotalLength()))
	q.l4 = q.ip + n
	mapped(&q.tuple.Src, h[srcOffset4:])
	mapped(&q.tuple.Dst, h[srcOffset4+4:])
	return q.transport(b, h.Protocol())
}

// mapped writes the IPv4 address at the start of b into a.
func mapped(a *packet.Addr, b []byte) {
	*a = packet.Addr{10: 0xFF, 11: 0xFF}
	copy(a[v4InMapped:], b[:4])
}

// parse6 reads a quoted IPv6 packet.
func (q *quote) parse6(b []byte) packet.Reason {
	h := header.IPv6(b[q.ip:q.end])
	if len(h) < header.IPv6MinimumSize {
		return packet.Truncated
	}
	if b[q.ip]>>4 != header.IPv6Version {
		return packet.BadHeader
	}
	q.end = min(q.end, q.ip+header.IPv6MinimumSize+int(h.PayloadLength()))
	q.tuple.Src = packet.Addr(h[srcOffset6:])
	q.tuple.Dst = packet.Addr(h[srcOffset6+16:])
	q.l4 = q.ip + header.IPv6MinimumSize // not behind q.end
	next := h.NextHeader()
	for range maxExtensions + 1 {
		x := b[q.l4:q.end]
		size := 0
		switch next {
		case protoTCP, protoUDP, protoICMPv6:
			return q.transport(b, next)
		case extHopByHop, extRouting, extDestination, extMobility, extHIP, extShim6, extTest1, extTest2:
			if len(x) < 8 {
				return packet.Truncated
			}
			if next == extRouting && x[3] != 0 {
				return packet.RoutingHeader // its destination is not the flow's
			}
			size = 8 + 8*int(x[1])
		case extAuth:
			if len(x) < 8 {
				return packet.Truncated
			}
			size = 8 + 4*int(x[1]) // RFC 4302 section 2.2
		case extFragment:
			if len(x) < 8 {
				return packet.Truncated
			}
			if binary.BigEndian.Uint16(x[2:])&^7 != 0 {
				return packet.FragmentRefused
			}
			size = 8
		default:
			return packet.UnsupportedProtocol
		}
		next = x[0]
		if q.l4 += size; q.l4-q.ip-header.IPv6MinimumSize > maxExtensionBytes {
			return packet.BadExtension
		}
		if q.l4 > q.end {
			return packet.Truncated
		}
	}
	return packet.BadExtension
}

// IPv6 extension headers (IANA protocol numbers).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extDestination = 60
	extMobility    = 135
	extHIP         = 139
	extShim6       = 140
	extTest1       = 253 // RFC 3692
	extTest2       = 254
)

// transport reads the quoted transport header.
func (q *quote) transport(b []byte, proto uint8) packet.Reason {
	if q.end-q.l4 < minQuote {
		return packet.Truncated
	}
	t := b[q.l4:q.end]
	q.tuple.Proto = proto
	switch {
	case proto == protoTCP, proto == protoUDP:
		q.tuple.SrcPort = binary.BigEndian.Uint16(t)
		q.tuple.DstPort = binary.BigEndian.Uint16(t[2:])
		return packet.OK
	case proto == protoICMP && q.version == header.IPv4Version,
		proto == protoICMPv6 && q.version == header.IPv6Version:
		q.icmp = t[0]
		at, ok := echo(proto, q.icmp)
		if !ok { // an error about an error is never sent (RFC 1122 section 3.2.2)
			return packet.UnsupportedProtocol
		}
		if ident := binary.BigEndian.Uint16(t[echoIdent:]); at == source {
			q.tuple.SrcPort = ident
		} else {
			q.tuple.DstPort = ident
		}
		return packet.OK
	}
	return packet.UnsupportedProtocol
}

// rewrite changes one end of the quoted packet in b to a and port and keeps
// the checksums in the quote right, as far as they are quoted (RFC 3022
// section 4.3). It returns what all of it adds to a checksum over the quote.
func (q *quote) rewrite(b []byte, at end, a *packet.Addr, port uint16) packet.Delta {
	before := &q.tuple.Src
	if at == destination {
		before = &q.tuple.Dst
	}
	h, t := b[q.ip:q.end], b[q.l4:q.end]
	addr := setAddr(h, q.version, at, before, a)
	quoted := addr
	if q.version == header.IPv4Version {
		// The header's checksum took up what the address added, so that the
		// sum over the header is what it was.
		quoted = 0
	}
	proto := q.tuple.Proto
	body, _ := setPort(t, proto, q.icmp, at, port)
	quoted = quoted.Plus(body)
	if proto == protoTCP && len(t) < tcpSumEnd {
		return quoted // the checksum is not in the quote
	}
	if proto != protoICMP { // which has no pseudo-header
		body = body.Plus(addr)
	}
	return quoted.Plus(applyTo(t[sumOffset(proto):], proto, body))
}
