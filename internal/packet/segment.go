package packet

import (
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Segmenter cuts a super-packet into wire packets with complete checksums, one
// per call of Next: each byte of payload is copied once and summed once, and
// what the headers add to the checksums is summed once per super-packet. It
// also completes the checksum of an ordinary packet that has a partial one, and
// hands on one that is complete already, so that a sender needs no other case:
//
//	if s.Start(pk) == packet.OK {
//		for more := true; more; {
//			n, more = s.Next(buf)
//			…
//		}
//	}
//
// Rules (the same as the kernel's software segmentation, net/ipv4/tcp_offload.c
// and udp_offload.c): the sequence number advances by the payload before; FIN
// and PSH only on the last segment, CWR only on the first; all options on every
// segment; the IPv4 identification counts up by one per segment; each datagram
// of a UDP super-packet has Size bytes, the last one the rest, and a length of
// its own.
//
// The zero Segmenter is ready for Start. It is owned by one worker and reused.
type Segmenter struct {
	// borrowed: from the packet, until the last Next.
	data []byte

	off     int // of the payload that goes out next
	size    int // payload of each segment but the last
	hdr     int // length of all headers
	l4      int // offset of the transport header
	seq     uint32
	id      uint16
	ipSum   uint32 // IPv4 header without total length, ID and checksum
	l4Sum   uint32 // pseudo-header and transport header without what changes
	kind    segmentKind
	v4      bool
	flags   uint8
	started bool // the first segment went out
}

// segmentKind says what Next has to do.
type segmentKind uint8

const (
	segmentNone segmentKind = iota
	segmentCopy             // complete already
	segmentTCP
	segmentUDP
)

// Start makes s cut pk, which stays borrowed until Next has said that there is
// no more. It reads nothing but pk: addresses and ports may have been rewritten
// since it was parsed, and the sum in its checksum field is not used. It returns
// BadOffload, and s then yields nothing, if the offload state cannot be that of
// a packet which passed Parse; Truncated for an empty one.
func (s *Segmenter) Start(pk *Packet) Reason {
	*s = Segmenter{data: pk.Data}
	b, g := pk.Data, &pk.GSO
	if len(b) == 0 {
		return Truncated
	}
	if g.Type == GSONone && !g.Partial {
		s.kind = segmentCopy
		s.off = len(b)
		return OK
	}
	l4, hdr := int(g.CsumStart), int(g.HdrLen)
	if hdr > len(b) || l4+header.UDPMinimumSize > hdr {
		return BadOffload
	}
	s.l4, s.hdr, s.off = l4, hdr, hdr
	s.size = len(b) - hdr
	if g.Type != GSONone {
		s.size = int(g.Size)
		if s.size == 0 {
			return BadOffload
		}
	}
	var version uint8
	switch b[0] >> 4 {
	case header.IPv4Version:
		if l4 < header.IPv4MinimumSize {
			return BadOffload
		}
		h := header.IPv4(b)
		s.v4, version = true, 4
		s.id = h.ID()
		s.ipSum = uint32(checksum.Checksum(b[:l4], 0)) +
			uint32(^h.TotalLength()) + uint32(^h.ID()) + uint32(^h.Checksum())
	case header.IPv6Version:
		if l4 < header.IPv6MinimumSize {
			return BadOffload
		}
		version = 6
	default:
		return BadOffload
	}
	switch {
	case g.CsumOffset == header.TCPChecksumOffset && g.Type != GSOUDP && hdr-l4 >= header.TCPMinimumSize:
		h := header.TCP(b[l4:hdr])
		s.kind = segmentTCP
		s.seq = h.SequenceNumber()
		s.flags = uint8(h.Flags())
		s.l4Sum = uint32(pseudoSum(b, version, ProtoTCP, 0)) + uint32(checksum.Checksum(h, 0)) +
			uint32(^h.Checksum()) + uint32(^uint16(s.seq>>16)) + uint32(^uint16(s.seq)) + uint32(^uint16(s.flags))
	case g.CsumOffset == udpChecksumOffset && (g.Type == GSOUDP || g.Type == GSONone) && hdr-l4 == header.UDPMinimumSize:
		h := header.UDP(b[l4:hdr])
		s.kind = segmentUDP
		s.l4Sum = uint32(pseudoSum(b, version, ProtoUDP, 0)) +
			uint32(h.SourcePort()) + uint32(h.DestinationPort())
	default:
		return BadOffload
	}
	return OK
}

// MaxLen returns the length of the longest packet Next will write: what dst
// needs.
func (s *Segmenter) MaxLen() int {
	if s.kind == segmentCopy {
		return len(s.data)
	}
	return s.hdr + min(s.size, len(s.data)-s.hdr)
}

// Next writes the next wire packet to dst and returns its length and whether
// more follow. It returns 0 and false when there is none, or when dst is shorter
// than the packet: then the rest is lost, a bug of the caller.
func (s *Segmenter) Next(dst []byte) (n int, more bool) {
	switch s.kind {
	case segmentTCP, segmentUDP:
	case segmentCopy:
		n = 0
		if len(dst) >= len(s.data) {
			n = copy(dst, s.data)
		}
		s.kind = segmentNone
		return n, false
	default:
		return 0, false
	}
	part := min(s.size, len(s.data)-s.off)
	n = s.hdr + part
	if n > len(dst) {
		s.kind = segmentNone
		return 0, false
	}
	dst = dst[:n]
	copy(dst, s.data[:s.hdr])
	copy(dst[s.hdr:], s.data[s.off:s.off+part])
	s.off += part
	more = s.off < len(s.data)

	if s.v4 {
		h := header.IPv4(dst)
		h.SetTotalLength(uint16(n))
		h.SetID(s.id)
		h.SetChecksum(^uint16(fold32(s.ipSum + uint32(uint16(n)) + uint32(s.id))))
		s.id++
	} else {
		header.IPv6(dst).SetPayloadLength(uint16(n - header.IPv6MinimumSize))
	}
	sum := s.l4Sum + uint32(n-s.l4)
	if s.kind == segmentTCP {
		flags := s.flags
		if more {
			flags &^= FIN | PSH
		}
		if s.started {
			flags &^= CWR
		}
		h := header.TCP(dst[s.l4:])
		h.SetSequenceNumber(s.seq)
		h.SetFlags(flags)
		sum += s.seq>>16 + s.seq&0xffff + uint32(flags)
		h.SetChecksum(^checksum.Checksum(dst[s.hdr:], uint16(fold32(sum))))
		s.seq += uint32(part)
	} else {
		h := header.UDP(dst[s.l4:])
		h.SetLength(uint16(n - s.l4))
		sum += uint32(n - s.l4) // once for the header, once for the pseudo-header
		c := ^checksum.Checksum(dst[s.hdr:], uint16(fold32(sum)))
		if c == 0 {
			c = 0xffff // RFC 768
		}
		h.SetChecksum(c)
	}
	s.started = true
	if !more {
		s.kind = segmentNone
		s.data = nil
	}
	return n, more
}
