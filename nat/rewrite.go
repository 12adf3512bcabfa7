package nat

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fe919326/spillway/internal/packet"
)

// Short names for what every file here asks for.
const (
	protoICMP   = packet.ProtoICMP
	protoTCP    = packet.ProtoTCP
	protoUDP    = packet.ProtoUDP
	protoICMPv6 = packet.ProtoICMPv6
)

// end is one end of a packet: where it comes from or where it goes.
type end uint8

const (
	source end = iota
	destination
)

// Offsets of the source address in the IP headers (RFC 791 section 3.1, RFC
// 8200 section 3). The destination follows at once.
const (
	srcOffset4 = 12
	srcOffset6 = 8
	// v4InMapped is where the four bytes of an IPv4 address are in an Addr.
	v4InMapped = 12
)

// RewriteSource changes p's source to a and port, in place: the address, the
// TCP or UDP source port or the identifier of an echo request, the IPv4
// header checksum and the TCP, UDP or ICMP checksum, complete or partial
// (p.GSO). p's own Src and SrcPort follow. The port is not used where the
// source has none: fragments that are not the first, ICMP errors, echo replies.
//
// p must come from Parse, and a must be of p's IP version.
func RewriteSource(p *packet.Parsed, a packet.Addr, port uint16) {
	addr := setAddr(p.Data, p.Version, source, &p.Src, &a)
	p.Src = a
	if !p.Transport {
		return
	}
	body, ok := setPort(p.Data[p.L4:], p.Proto, p.Type, source, port)
	if ok {
		p.SrcPort = port
	}
	p.AdjustChecksum(addr, body)
}

// RewriteDestination is RewriteSource for the destination. An identifier is
// the destination's port in an echo reply.
func RewriteDestination(p *packet.Parsed, a packet.Addr, port uint16) {
	addr := setAddr(p.Data, p.Version, destination, &p.Dst, &a)
	p.Dst = a
	if !p.Transport {
		return
	}
	body, ok := setPort(p.Data[p.L4:], p.Proto, p.Type, destination, port)
	if ok {
		p.DstPort = port
	}
	p.AdjustChecksum(addr, body)
}

// setAddr changes an address in the IP header at the start of b from before,
// which is what stands there, to after, and keeps the IPv4 header checksum
// right. It returns what the change adds to a checksum over the pseudo-header.
func setAddr(b []byte, version uint8, at end, before, after *packet.Addr) packet.Delta {
	d := packet.AddrDelta(before, after)
	if version == header.IPv4Version {
		copy(b[srcOffset4+4*int(at):][:4], after[v4InMapped:])
		h := header.IPv4(b)
		h.SetChecksum(d.Full(h.Checksum()))
		return d
	}
	copy(b[srcOffset6+16*int(at):][:16], after[:])
	return d
}

// setPort writes the port of one end into the transport header t and returns
// what that adds to its checksum. It is not ok, and nothing is written, if that
// end has no port. The identifier is the port of the asking side of an echo.
func setPort(t []byte, proto, icmpType uint8, at end, port uint16) (d packet.Delta, ok bool) {
	var f []byte
	switch proto {
	case protoTCP, protoUDP:
		f = t[2*int(at):] // RFC 9293 section 3.1, RFC 768
	default:
		if asking, ok := echo(proto, icmpType); !ok || asking != at {
			return 0, false
		}
		f = t[echoIdent:]
	}
	before := binary.BigEndian.Uint16(f)
	binary.BigEndian.PutUint16(f, port)
	return packet.Delta16(before, port), true
}

// echoIdent is the offset of the identifier in echo messages (RFC 792, RFC
// 4443 section 4.1).
const echoIdent = 4

// echo says at which end of an echo message the asking socket is. It is not ok
// for any other message and protocol.
func echo(proto, icmpType uint8) (asking end, ok bool) {
	switch proto {
	case protoICMP:
		switch header.ICMPv4Type(icmpType) {
		case header.ICMPv4Echo:
			return source, true
		case header.ICMPv4EchoReply:
			return destination, true
		}
	case protoICMPv6:
		switch header.ICMPv6Type(icmpType) {
		case header.ICMPv6EchoRequest:
			return source, true
		case header.ICMPv6EchoReply:
			return destination, true
		}
	}
	return 0, false
}

// sumOffset returns where in the transport header the checksum is.
func sumOffset(proto uint8) int {
	switch proto {
	case protoTCP:
		return header.TCPChecksumOffset
	case protoUDP:
		return 6 // RFC 768
	}
	return 2 // RFC 792, RFC 4443 section 2.1
}

// applyTo changes the complete checksum field f of protocol proto by d and
// returns what that adds to a checksum that covers the field.
func applyTo(f []byte, proto uint8, d packet.Delta) packet.Delta {
	before := binary.BigEndian.Uint16(f)
	after := d.Full(before)
	if proto == protoUDP {
		after = d.UDP(before)
	}
	binary.BigEndian.PutUint16(f, after)
	return packet.Delta16(before, after)
}
