package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ICMPError is an error that the engine tells the sender of a packet.
type ICMPError uint8

// The errors, with their ICMP (RFC 792, RFC 1812) and ICMPv6 (RFC 4443) forms.
const (
	AdminProhibited     ICMPError = iota + 1 // 3/13, 1/1: a rule forbids it
	HostUnreachable                          // 3/1, 1/3: no room or no way now
	PortUnreachable                          // 3/3, 1/4
	ProtocolUnreachable                      // 3/2, 4/1: protocol not carried
	FragNeeded                               // 3/4, 2/0: larger than mtu
	TTLExceededError                         // 11/0, 3/0

	numICMPErrors
)

// typeCode is the type and code of an error message.
type typeCode struct{ typ, code uint8 }

// icmpErrors are the messages for ICMPError, IPv4 first.
var icmpErrors = [numICMPErrors][2]typeCode{
	AdminProhibited:     {{3, 13}, {1, 1}},
	HostUnreachable:     {{3, 1}, {1, 3}},
	PortUnreachable:     {{3, 3}, {1, 4}},
	ProtocolUnreachable: {{3, 2}, {4, 1}},
	FragNeeded:          {{3, 4}, {2, 0}},
	TTLExceededError:    {{11, 0}, {3, 0}},
}

// Largest error messages, IP header included.
const (
	maxError4 = 576  // RFC 1812 section 4.3.2.3
	maxError6 = 1280 // RFC 4443 section 2.4 (c): the minimum IPv6 MTU
)

// AppendICMPError writes the error e about p into b: from src to p's source,
// quoting p as it stands now, as much of it as fits. mtu is the next hop's MTU
// in bytes for FragNeeded and ignored for the others. A super-packet is quoted
// as it is: the receiver looks at addresses, ports and sequence number only.
//
// p need not have passed Parse: it may be one that was refused after its IP
// header was read, such as UnsupportedProtocol. AppendICMPError returns nil,
// and writes nothing, where no error may be sent (RFC 1812 section 4.3.2.7, RFC
// 4443 section 2.4 (e)): about another ICMP error or a redirect, a fragment that
// is not the first, a broadcast or multicast destination, a source that is not
// a single host; also if src is not of p's family, or b is full.
//
// Callers limit the rate, per task.
func AppendICMPError(b *Batch, p *Parsed, e ICMPError, src Addr, mtu uint16) *Packet {
	if e == 0 || e >= numICMPErrors || !answerable(p) || p.FragOff != 0 ||
		aboutError(p) || Is4(&src) != (p.Version == 4) {
		return nil
	}
	size := ipHeaderSize(p.Version)
	max, proto, tos, form := maxError4, uint8(ProtoICMP), uint8(0xc0), icmpErrors[e][0] // RFC 1812 section 4.3.2.5
	if p.Version == 6 {
		max, proto, tos, form = maxError6, ProtoICMPv6, 0, icmpErrors[e][1]
	}
	quote := p.Data[:min(len(p.Data), max-size-icmpHeaderSize)]
	d := b.Reserve(size + icmpHeaderSize + len(quote))
	if d == nil {
		return nil
	}
	sum := putIP(d, &src, &p.Src, p.Version, proto, tos)
	h := d[size:]
	h[0], h[1], h[2], h[3] = form.typ, form.code, 0, 0
	var word uint32
	switch {
	case e == FragNeeded:
		word = uint32(mtu)
	case e == ProtocolUnreachable && p.Version == 6:
		word = nextHeaderOffset(p)
	}
	binary.BigEndian.PutUint32(h[4:8], word)
	copy(h[icmpHeaderSize:], quote)
	if p.Version == 4 {
		sum = 0 // ICMP has no pseudo-header
	}
	binary.BigEndian.PutUint16(h[2:4], ^checksum.Checksum(h, sum))
	return b.Commit(len(d))
}

// aboutError reports whether p is an ICMP message that no error may answer,
// or one whose type nobody has seen.
func aboutError(p *Parsed) bool {
	switch p.Proto {
	case ProtoICMP:
		switch header.ICMPv4Type(p.Type) {
		case header.ICMPv4SrcQuench, header.ICMPv4Redirect:
			return true
		}
		return !p.Transport || p.IsICMPError()
	case ProtoICMPv6:
		return !p.Transport || p.Type < uint8(header.ICMPv6EchoRequest) || p.Type == uint8(header.ICMPv6RedirectMsg)
	}
	return false
}

// nextHeaderOffset returns the offset of the byte that names p.Proto: what the
// pointer of an ICMPv6 parameter problem tells (RFC 4443 section 3.4). The
// walk is the one Parse did, over headers it checked.
func nextHeaderOffset(p *Parsed) uint32 {
	b := p.Data
	at, off := 6, header.IPv6MinimumSize
	for off < int(p.L4) && off+1 < len(b) {
		size := 8 + int(b[off+1])*8
		switch b[at] {
		case extFragment:
			size = 8
		case extAuth:
			size = 8 + int(b[off+1])*4
		}
		at = off
		off += size
	}
	return uint32(at)
}
