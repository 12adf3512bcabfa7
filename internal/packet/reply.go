package packet

import (
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// replyTTL is the TTL and hop limit of packets that the engine makes itself
// (RFC 1700 page 64, Linux's IPDEFTTL).
const replyTTL = 64

// AppendReset writes the RST that answers the segment p into b, as the host
// that p was sent to would (RFC 9293 section 3.10.7.1), so that the sender takes
// it: sequence number from the segment's ACK, or, for a segment without one,
// zero and an ACK of all it occupied. It returns nil, and writes nothing, for
// what a RST never answers (another RST, anything but TCP, a source that is not
// a single host), for a first fragment without ACK, whose length nobody knows,
// and when b is full.
func AppendReset(b *Batch, p *Parsed) *Packet {
	if p.Proto != ProtoTCP || !p.Transport || p.Flags&RST != 0 || !answerable(p) {
		return nil
	}
	if p.Fragment && p.Flags&ACK == 0 {
		return nil
	}
	l4 := ipHeaderSize(p.Version)
	d := b.Reserve(l4 + header.TCPMinimumSize)
	if d == nil {
		return nil
	}
	h := header.TCP(d[l4:])
	clear(h)
	h.SetSourcePort(p.DstPort)
	h.SetDestinationPort(p.SrcPort)
	h.SetDataOffset(header.TCPMinimumSize)
	if p.Flags&ACK != 0 {
		h.SetSequenceNumber(p.Ack)
		h.SetFlags(RST)
	} else {
		n := uint32(p.PayloadLen())
		if p.Flags&SYN != 0 {
			n++
		}
		if p.Flags&FIN != 0 {
			n++
		}
		h.SetAckNumber(p.Seq + n)
		h.SetFlags(RST | ACK)
	}
	sum := putIP(d, &p.Dst, &p.Src, p.Version, ProtoTCP, 0)
	h.SetChecksum(^checksum.Checksum(h, sum))
	return b.Commit(len(d))
}

// answerable reports whether p came from a single host and went to one: only
// then may an answer be sent (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4
// (e)). A packet that is no whole IP packet has no answer.
func answerable(p *Parsed) bool {
	if len(p.Data) == 0 || martian(&p.Src) || p.Src == p.Dst {
		return false
	}
	if p.Version == 4 {
		return p.Dst[12] < 224 && p.Dst[12] != 0
	}
	return p.Dst[0] != 0xff && !Is4(&p.Src) && p.Dst != Addr{}
}

// ipHeaderSize returns the length of an IP header without options.
func ipHeaderSize(version uint8) int {
	if version == 4 {
		return header.IPv4MinimumSize
	}
	return header.IPv6MinimumSize
}

// putIP writes the IP header of a whole packet d without options and returns
// the sum of the pseudo-header for what follows it. tos is the TOS or traffic
// class byte.
func putIP(d []byte, src, dst *Addr, version, proto, tos uint8) uint16 {
	size := ipHeaderSize(version)
	n := len(d) - size
	clear(d[:size])
	if version == 4 {
		h := header.IPv4(d)
		d[0], d[1] = header.IPv4Version<<4|header.IPv4MinimumSize/4, tos
		h.SetTotalLength(uint16(len(d)))
		d[6] = 0x40 // DF: an atomic datagram needs no ID (RFC 6864)
		d[8], d[9] = replyTTL, proto
		copy(d[12:16], src[12:16])
		copy(d[16:20], dst[12:16])
		h.SetChecksum(^sum20(d))
	} else {
		h := header.IPv6(d)
		d[0], d[1] = header.IPv6Version<<4|tos>>4, tos<<4
		h.SetPayloadLength(uint16(n))
		d[6], d[7] = proto, replyTTL
		copy(d[8:24], src[:])
		copy(d[24:40], dst[:])
	}
	return pseudoSum(d, version, proto, n)
}
