package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// udpChecksumOffset is the offset of the checksum in a UDP header (RFC 768).
const udpChecksumOffset = 6

// validFlags has a bit for every combination of FIN, SYN, RST, ACK and URG that
// a TCP may send; PSH, ECE and CWR go with any. RFC 9293 section 3.10.7.4: but
// for a SYN and a RST that answers a segment without ACK, every segment carries
// ACK. The same table as Linux's tcp_valid_flags (nf_conntrack_proto_tcp.c).
const validFlags uint64 = 1<<SYN | 1<<(SYN|URG) | 1<<(SYN|ACK) |
	1<<RST | 1<<(RST|ACK) |
	1<<(FIN|ACK) | 1<<(FIN|ACK|URG) |
	1<<ACK | 1<<(ACK|URG)

// tcp reads the TCP header at p.L4 (RFC 9293 section 3.1). A later fragment
// has none.
func (p *Parsed) tcp() Reason {
	if p.FragOff != 0 {
		return OK
	}
	b := p.Data[p.L4:]
	if len(b) < header.TCPMinimumSize {
		return p.short()
	}
	h := header.TCP(b)
	n := int(h.DataOffset())
	if n < header.TCPMinimumSize {
		return BadHeader
	}
	if n > len(b) {
		return p.short()
	}
	p.SrcPort = h.SourcePort()
	p.DstPort = h.DestinationPort()
	p.Seq = h.SequenceNumber()
	p.Ack = h.AckNumber()
	p.Flags = uint8(h.Flags())
	p.Window = h.WindowSize()
	p.Payload = p.L4 + uint16(n)
	p.Transport = true
	if validFlags>>(p.Flags&(FIN|SYN|RST|ACK|URG))&1 == 0 {
		return BadFlags
	}
	return OK
}

// udp reads the UDP header at p.L4 (RFC 768). The IP payload may be longer
// than the UDP length tells: that is where UDP options live (RFC 9868).
func (p *Parsed) udp() Reason {
	if p.FragOff != 0 {
		return OK
	}
	b := p.Data[p.L4:]
	if len(b) < header.UDPMinimumSize {
		return p.short()
	}
	h := header.UDP(b)
	n := int(h.Length())
	if n < header.UDPMinimumSize {
		return BadHeader // 0 is only for jumbograms (RFC 2675)
	}
	if p.Fragment {
		if n < len(b) {
			return FragmentRefused // shorter than its first fragment alone
		}
	} else if n > len(b) {
		return Truncated
	}
	p.SrcPort = h.SourcePort()
	p.DstPort = h.DestinationPort()
	p.Payload = p.L4 + header.UDPMinimumSize
	p.Transport = true
	return OK
}

// udpLen returns the length field of the UDP header.
func (p *Parsed) udpLen() uint16 { return header.UDP(p.Data[p.L4:]).Length() }

// icmp4 reads the ICMP header at p.L4 (RFC 792). Carried are echo and the
// errors about a flow; timestamp, redirect, source quench, router discovery
// and address mask are not (RFC 1812 section 5.2.7.2, RFC 6633).
func (p *Parsed) icmp4() Reason {
	b, r := p.icmp()
	if b == nil {
		return r
	}
	switch header.ICMPv4Type(p.Type) {
	case header.ICMPv4Echo:
		p.SrcPort = binary.BigEndian.Uint16(b[4:6])
	case header.ICMPv4EchoReply:
		p.DstPort = binary.BigEndian.Uint16(b[4:6])
	case header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
	default:
		return UnsupportedProtocol
	}
	return OK
}

// icmp6 reads the ICMPv6 header at p.L4 (RFC 4443). Carried are echo and the
// four errors; neighbour discovery and multicast listener messages never leave
// a link (RFC 4890 section 4.3).
func (p *Parsed) icmp6() Reason {
	b, r := p.icmp()
	if b == nil {
		return r
	}
	switch header.ICMPv6Type(p.Type) {
	case header.ICMPv6EchoRequest:
		p.SrcPort = binary.BigEndian.Uint16(b[4:6])
	case header.ICMPv6EchoReply:
		p.DstPort = binary.BigEndian.Uint16(b[4:6])
	case header.ICMPv6DstUnreachable, header.ICMPv6PacketTooBig,
		header.ICMPv6TimeExceeded, header.ICMPv6ParamProblem:
	default:
		return UnsupportedProtocol
	}
	return OK
}

// icmp reads what both ICMPs have in common. It returns nil with the verdict
// where there is no header to look into.
func (p *Parsed) icmp() ([]byte, Reason) {
	if p.FragOff != 0 {
		return nil, OK
	}
	b := p.Data[p.L4:]
	if len(b) < icmpHeaderSize {
		return nil, p.short()
	}
	p.Type, p.Code = b[0], b[1]
	p.Payload = p.L4 + icmpHeaderSize
	p.Transport = true
	return b, OK
}

// icmpHeaderSize is the length of an ICMP or ICMPv6 header: type, code,
// checksum and one word.
const icmpHeaderSize = 8

// PayloadLen returns the number of bytes behind the transport header, or, for
// a later fragment, behind the IP headers.
func (p *Parsed) PayloadLen() int {
	if p.Transport {
		return len(p.Data) - int(p.Payload)
	}
	return len(p.Data) - int(p.L4)
}

// Segments returns the number of wire packets that p is or becomes: what
// counters and logs count.
func (p *Parsed) Segments() int { return p.GSO.Segments(p.PayloadLen()) }

// IsEchoRequest reports whether p is an ICMP or ICMPv6 echo request.
func (p *Parsed) IsEchoRequest() bool {
	return p.Transport && (p.Proto == ProtoICMP && p.Type == uint8(header.ICMPv4Echo) ||
		p.Proto == ProtoICMPv6 && p.Type == uint8(header.ICMPv6EchoRequest))
}

// IsEchoReply reports whether p is an ICMP or ICMPv6 echo reply.
func (p *Parsed) IsEchoReply() bool {
	return p.Transport && (p.Proto == ProtoICMP && p.Type == uint8(header.ICMPv4EchoReply) ||
		p.Proto == ProtoICMPv6 && p.Type == uint8(header.ICMPv6EchoReply))
}

// IsICMPError reports whether p is an ICMP or ICMPv6 message that quotes
// another packet: unreachable, packet too big, time exceeded, parameter
// problem.
func (p *Parsed) IsICMPError() bool {
	if !p.Transport {
		return false
	}
	switch p.Proto {
	case ProtoICMP:
		switch header.ICMPv4Type(p.Type) {
		case header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
			return true
		}
	case ProtoICMPv6:
		return p.Type >= uint8(header.ICMPv6DstUnreachable) && p.Type <= uint8(header.ICMPv6ParamProblem)
	}
	return false
}
