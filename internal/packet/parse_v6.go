package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Limits of the walk over IPv6 extension headers: what is longer has no
// business here and costs time (RFC 8504 section 5.3 lets a node set such
// limits).
const (
	maxExtHeaders = 8
	maxExtBytes   = 256
)

// IPv6 extension headers (IANA "IPv6 Extension Header Types").
const (
	extHopByHop = 0
	extRouting  = 43
	extFragment = 44
	extAuth     = 51
	extDestOpts = 60
	extMobility = 135
	extHIP      = 139
	extShim6    = 140
	extTest1    = 253
	extTest2    = 254
)

// extSet has a bit for every extension header that is walked over: bits 0-63
// in the first word. ESP is not among them: nothing behind it can be read.
var extSet = [4]uint64{
	0: 1<<extHopByHop | 1<<extRouting | 1<<extFragment | 1<<extAuth | 1<<extDestOpts,
	2: 1<<(extMobility-128) | 1<<(extHIP-128) | 1<<(extShim6-128),
	3: 1<<(extTest1-192) | 1<<(extTest2-192),
}

// isExtension reports whether proto is an extension header that is walked.
func isExtension(proto uint8) bool { return extSet[proto>>6]>>(proto&63)&1 != 0 }

// parse6 reads an IPv6 packet (RFC 8200).
func (p *Parsed) parse6(b []byte) Reason {
	if len(b) < header.IPv6MinimumSize {
		return Truncated
	}
	h := header.IPv6(b)
	n := header.IPv6MinimumSize + int(h.PayloadLength())
	if n > len(b) {
		return Truncated
	}
	b = b[:n]
	p.Data = b
	p.Version = 6
	p.TTL = h.HopLimit()
	p.Proto = h.NextHeader()
	p.L4 = header.IPv6MinimumSize
	p.Src = Addr(b[8:24])
	p.Dst = Addr(b[24:40])
	// A mapped address on the wire (RFC 4291 section 2.5.5.2 has them for APIs
	// only) would be taken for IPv4 by every table behind this.
	if martian(&p.Src) || martian(&p.Dst) || Is4(&p.Src) || Is4(&p.Dst) || p.Src == p.Dst {
		return Martian
	}
	if isExtension(p.Proto) {
		if r := p.extensions(); r != OK {
			return r
		}
	}
	switch p.Proto {
	case ProtoTCP:
		return p.tcp()
	case ProtoUDP:
		return p.udp()
	case ProtoICMPv6:
		return p.icmp6()
	}
	if p.FragOff != 0 && isExtension(p.Proto) {
		// A later fragment whose datagram has more extension headers in its
		// first: the upper-layer protocol is not told here.
		return OK
	}
	return UnsupportedProtocol // ESP, no next header (59), everything else
}

// extensions walks from the fixed header to the upper-layer header, or to the
// payload of a later fragment, and sets Proto and L4 to it.
func (p *Parsed) extensions() Reason {
	b := p.Data
	off := header.IPv6MinimumSize
	next := p.Proto
	for count := 1; isExtension(next); count++ {
		if count > maxExtHeaders {
			return BadExtension
		}
		if off+8 > len(b) {
			return p.short()
		}
		size := 8 + int(b[off+1])*8 // RFC 8200 section 4, RFC 6564 section 4
		switch next {
		case extFragment:
			size = 8
		case extAuth:
			size = 8 + int(b[off+1])*4 // RFC 4302 section 2.2
		}
		if off+size > header.IPv6MinimumSize+maxExtBytes {
			return BadExtension
		}
		if off+size > len(b) {
			return p.short()
		}
		if r := p.extension(next, off, b[off:off+size]); r != OK {
			return r
		}
		next = b[off]
		off += size
		p.Proto, p.L4 = next, uint16(off)
		if p.FragHdr != 0 && int(p.FragHdr)+8 == off && p.Fragment {
			// What counts is the payload length of the whole datagram (RFC
			// 8200 section 4.5): the headers in front of this one included.
			if r := p.checkFragment(len(b)-off, int(p.FragHdr)-header.IPv6MinimumSize); r != OK {
				return r
			}
			if p.FragOff != 0 {
				return OK
			}
		}
	}
	return OK
}

// extension checks one extension header h of the given kind at offset off.
func (p *Parsed) extension(kind uint8, off int, h []byte) Reason {
	switch kind {
	case extHopByHop:
		if off != header.IPv6MinimumSize {
			return BadExtension // RFC 8200 section 4.1: first or not at all
		}
		return checkOptions(h[2:])
	case extDestOpts:
		return checkOptions(h[2:])
	case extRouting:
		// Type 0: RFC 5095. With segments left the destination checked here
		// would not be the one the packet ends at.
		if h[2] == 0 || h[3] != 0 {
			return RoutingHeader
		}
	case extFragment:
		if p.FragHdr != 0 {
			return BadExtension
		}
		p.FragHdr = uint16(off)
		word := binary.BigEndian.Uint16(h[2:4])
		p.FragOff = word &^ 7
		p.More = word&1 != 0
		p.FragID = binary.BigEndian.Uint32(h[4:8])
		p.Fragment = p.More || p.FragOff != 0 // else atomic: RFC 6946
	case extAuth:
		if len(h)&7 != 0 || len(h) < 16 {
			return BadExtension // RFC 4302 section 2.2: a multiple of 8 in IPv6
		}
	}
	return OK
}

// Options that change what the packet is (RFC 8200 section 4.2).
const (
	optPad1        = 0x00
	optJumbo       = 0xc2 // RFC 2675: another length than the one checked
	optHomeAddress = 0xc9 // RFC 6275: another source than the one checked
)

// checkOptions walks the options of a hop-by-hop or destination options
// header.
func checkOptions(o []byte) Reason {
	for len(o) > 0 {
		if o[0] == optPad1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return BadExtension
		}
		if o[0] == optJumbo || o[0] == optHomeAddress {
			return BadExtension
		}
		o = o[2+int(o[1]):]
	}
	return OK
}
