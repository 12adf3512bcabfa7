package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Parse reads pk into p and says whether it may go on: OK, or the reason why
// it is refused. It is the only function that looks at bytes nobody checked.
//
// p is reset first. After a refusal p holds what was read until then, so that
// logs, counters and AppendICMPError can name it: Version and Data are set
// once the IP header made sense, Src, Dst and Proto with them, the ports once
// the transport header was complete. After OK all of p is valid, pk.Data is
// cut to the length its IP header tells (bytes behind it are padding of a lower
// layer and go no further), and GSO.HdrLen is filled in if it was 0.
//
// What is refused, in this order: lengths and header checksum (Truncated,
// BadVersion, BadHeader, BadChecksum), IPv4 options other than NOP and EOL
// (BadOption), addresses that are martian or equal (Martian), IPv6 extension
// headers (BadExtension, RoutingHeader), fragments that hide their transport
// header or do not fit together (FragmentRefused), protocols and ICMP types
// that are not carried (UnsupportedProtocol), TCP flags (BadFlags), and an
// offload state that the packet contradicts (BadOffload). The transport
// checksum is not looked at: see VerifyChecksum.
//
// A later fragment (Fragment set, Transport not) is OK here if its own numbers
// make sense: whether its datagram may pass is for whoever tracks the first
// fragment. On FragmentRefused Src, Dst and FragID are set, so that the tracker
// can give up the datagram.
//
// Parse neither allocates nor keeps pk.
func (p *Parsed) Parse(pk *Packet) Reason {
	*p = Parsed{GSO: pk.GSO}
	b := pk.Data
	if len(b) == 0 {
		return Truncated
	}
	var r Reason
	switch b[0] >> 4 {
	case header.IPv4Version:
		r = p.parse4(b)
	case header.IPv6Version:
		r = p.parse6(b)
	default:
		return BadVersion
	}
	if r != OK {
		return r
	}
	if p.GSO.Type != GSONone || p.GSO.Partial {
		if r = p.checkOffload(); r != OK {
			return r
		}
		pk.GSO.HdrLen = p.GSO.HdrLen
	}
	pk.Data = p.Data
	return OK
}

// parse4 reads an IPv4 packet (RFC 791).
func (p *Parsed) parse4(b []byte) Reason {
	if len(b) < header.IPv4MinimumSize {
		return Truncated
	}
	h := header.IPv4(b)
	n, hdr := int(h.TotalLength()), int(h.HeaderLength())
	if hdr < header.IPv4MinimumSize || n < hdr {
		return BadHeader
	}
	if n > len(b) {
		return Truncated
	}
	b = b[:n]
	p.Data = b
	p.Version = 4
	p.TTL = h.TTL()
	p.Proto = h.Protocol()
	p.L4 = uint16(hdr)
	map4(&p.Src, b[12:16])
	map4(&p.Dst, b[16:20])
	// RFC 1812 section 5.2.2: a router verifies the header checksum.
	if hdr == header.IPv4MinimumSize {
		if sum20(b) != 0xffff {
			return BadChecksum
		}
	} else {
		if checksum.Checksum(b[:hdr], 0) != 0xffff {
			return BadChecksum
		}
		if !plainOptions(b[header.IPv4MinimumSize:hdr]) {
			return BadOption
		}
	}
	src, dst := binary.BigEndian.Uint32(b[12:16]), binary.BigEndian.Uint32(b[16:20])
	if src == dst || martian4(src) || martian4(dst) {
		return Martian
	}
	if word := binary.BigEndian.Uint16(b[6:8]); word&0x3fff != 0 {
		p.Fragment = true
		p.More = word&0x2000 != 0
		p.FragOff = word & 0x1fff << 3
		p.FragID = uint32(h.ID())
		// RFC 791 section 3.1: the whole datagram, header included, has at
		// most 65,535 bytes.
		if r := p.checkFragment(n-hdr, hdr); r != OK {
			return r
		}
	}
	switch p.Proto {
	case ProtoTCP:
		return p.tcp()
	case ProtoUDP:
		return p.udp()
	case ProtoICMP:
		return p.icmp4()
	}
	return UnsupportedProtocol
}

// plainOptions reports whether the options of an IPv4 header are only NOP and
// EOL. All others are refused (RFC 7126): source routes and record route would
// show or choose a way around the endpoint, and nothing else is in use.
func plainOptions(opts []byte) bool {
	for _, o := range opts {
		switch o {
		case byte(header.IPv4OptionNOPType):
		case byte(header.IPv4OptionListEndType):
			return true
		default:
			return false
		}
	}
	return true
}

// checkFragment looks at the numbers of a fragment that carries n bytes;
// front is what counts against 65,535 before its datagram's payload begins.
func (p *Parsed) checkFragment(n, front int) Reason {
	switch {
	case n == 0:
		return FragmentRefused
	case p.More && n&7 != 0:
		return FragmentRefused // RFC 791 section 3.2, RFC 8200 section 4.5
	case front+int(p.FragOff)+n > 65535:
		return FragmentRefused // "ping of death"
	case p.Proto == ProtoTCP && p.FragOff != 0 && p.FragOff < header.TCPMinimumSize:
		return FragmentRefused // RFC 3128: it would overwrite ports or flags
	}
	return OK
}

// short is the reason for a transport header that is not all there. A first
// fragment must hold it whole (RFC 1858, RFC 7112).
func (p *Parsed) short() Reason {
	if p.Fragment {
		return FragmentRefused
	}
	return Truncated
}

// checkOffload compares the offload state with the packet and fills in
// GSO.HdrLen. The kernel's own hdr_len is only a hint: a driver that does not
// know the length leaves it 0, any other value has to be right.
func (p *Parsed) checkOffload() Reason {
	g := &p.GSO
	if !p.Transport || p.Fragment || !g.Partial || g.CsumStart != p.L4 {
		return BadOffload
	}
	switch {
	case p.Proto == ProtoTCP && g.CsumOffset == header.TCPChecksumOffset:
	case p.Proto == ProtoUDP && g.CsumOffset == udpChecksumOffset:
	default:
		return BadOffload
	}
	// The UDP length covers all of a packet that the kernel has yet to sum or
	// cut: a shorter one would leave bytes that belong to no datagram.
	if p.Proto == ProtoUDP && int(p.udpLen()) != len(p.Data)-int(p.L4) {
		return BadOffload
	}
	if g.HdrLen != 0 && g.HdrLen != p.Payload {
		return BadOffload
	}
	g.HdrLen = p.Payload
	if g.Type == GSONone {
		return OK
	}
	if g.Size == 0 {
		return BadOffload
	}
	switch g.Type {
	case GSOTCP4:
		if p.Version != 4 || p.Proto != ProtoTCP {
			return BadOffload
		}
	case GSOTCP6:
		if p.Version != 6 || p.Proto != ProtoTCP {
			return BadOffload
		}
	case GSOUDP:
		if p.Proto != ProtoUDP {
			return BadOffload
		}
	default:
		return BadOffload
	}
	// No stack lets more than one segment carry a SYN or a RST: cutting it up
	// would send several.
	if p.Flags&(SYN|RST) != 0 && p.Segments() > 1 {
		return BadOffload
	}
	return OK
}
