package packet

import (
	"encoding/binary"
	"math/bits"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Checksum adds b to initial as 16-bit words in one's complement, an odd last
// byte padded with zero (RFC 1071). It does not complement the result. initial
// must be a sum over an even number of bytes.
func Checksum(b []byte, initial uint16) uint16 { return checksum.Checksum(b, initial) }

// Update16 returns the checksum field sum, a complete and complemented one,
// after a 16-bit word of what it covers changed from old to new (RFC 1624
// equation 3). It never returns 0xffff where the full computation would return
// 0. It knows nothing of UDP's "no checksum": see Delta.UDP.
func Update16(sum, old, new uint16) uint16 { return Delta16(old, new).Full(sum) }

// UpdatePartial16 is Update16 for a field that holds the sum of the
// pseudo-header, not complemented (CHECKSUM_PARTIAL).
func UpdatePartial16(sum, old, new uint16) uint16 { return Delta16(old, new).Partial(sum) }

// Delta is the difference that a change of covered bytes makes to a checksum:
// the one's complement sum of ~old + new over the changed words. The zero Delta
// changes nothing. Deltas are added up with Plus, then applied once.
type Delta uint32

// Delta16 is the Delta of one word.
func Delta16(old, new uint16) Delta { return Delta(uint32(^old) + uint32(new)) }

// AddrDelta is the Delta of an address that changed from old to new, both of
// one family. IPv4 addresses are mapped ones: the part they share adds nothing.
func AddrDelta(old, new *Addr) Delta {
	// One's complement sums do not care about the width of the words they are
	// taken in (RFC 1071 section 2): fold 64-bit words at the end.
	s, c := bits.Add64(^binary.BigEndian.Uint64(old[0:8]), binary.BigEndian.Uint64(new[0:8]), 0)
	s, c = bits.Add64(s, ^binary.BigEndian.Uint64(old[8:16]), c)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(new[8:16]), c)
	return Delta(fold64(s, c))
}

// Plus returns the Delta of both changes.
func (d Delta) Plus(e Delta) Delta { return Delta(fold32(uint32(d)) + fold32(uint32(e))) }

// Full applies d to a complete, complemented checksum field (RFC 1624
// equation 3).
func (d Delta) Full(sum uint16) uint16 {
	s := fold32(uint32(^sum) + fold32(uint32(d)))
	if s == 0 {
		// Both zeros of one's complement are the same sum. Real packets never
		// add up to +0, so this is -0 and its complement is 0.
		return 0
	}
	return ^uint16(s)
}

// Partial applies d to a sum that is not complemented.
func (d Delta) Partial(sum uint16) uint16 {
	return uint16(fold32(uint32(sum) + fold32(uint32(d))))
}

// UDP applies d to the complete checksum of a UDP header: 0 means that there is
// none and stays 0, a result of 0 is sent as 0xffff (RFC 768, RFC 3022 section
// 4.1).
func (d Delta) UDP(sum uint16) uint16 {
	if sum == 0 {
		return 0
	}
	if sum = d.Full(sum); sum == 0 {
		return 0xffff
	}
	return sum
}

// fold32 adds the carries back into 16 bits.
func fold32(s uint32) uint32 {
	s = s&0xffff + s>>16
	return s&0xffff + s>>16
}

// fold64 folds a sum made with bits.Add64, starting from a carry of 0, and its
// last carry into 16 bits.
func fold64(s, carry uint64) uint32 {
	s += carry                       // no overflow: with a carry s is at most 2^64 - 2
	s = s>>32 + s&0xffffffff         // at most 0x1_ffff_fffe
	return fold32(uint32(s>>32 + s)) // at most 0xffff_ffff before the fold
}

// sum20 is Checksum over the first 20 bytes of b, which must be there: an IPv4
// header without options.
func sum20(b []byte) uint16 {
	_ = b[19]
	s, c := bits.Add64(binary.BigEndian.Uint64(b[0:8]), binary.BigEndian.Uint64(b[8:16]), 0)
	s, c = bits.Add64(s, uint64(binary.BigEndian.Uint32(b[16:20])), c)
	return uint16(fold64(s, c))
}

// pseudo returns the sum of the pseudo-header for n bytes of transport header
// and payload, not complemented.
func (p *Parsed) pseudo(n int) uint16 { return pseudoSum(p.Data, p.Version, p.Proto, n) }

// pseudoSum returns the sum of the pseudo-header (RFC 9293 section 3.1, RFC
// 8200 section 8.1) for n bytes of proto behind the IP header b.
func pseudoSum(b []byte, version, proto uint8, n int) uint16 {
	var s, c uint64
	if version == 4 {
		s = binary.BigEndian.Uint64(b[12:20])
	} else {
		b = b[8:40]
		s, c = bits.Add64(binary.BigEndian.Uint64(b[0:8]), binary.BigEndian.Uint64(b[8:16]), 0)
		s, c = bits.Add64(s, binary.BigEndian.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, binary.BigEndian.Uint64(b[24:32]), c)
	}
	s, c = bits.Add64(s, uint64(n)+uint64(proto), c)
	return uint16(fold64(s, c))
}

// VerifyChecksum returns OK if the transport checksum of p, which Parse
// accepted, is right, else BadChecksum. It is OK without a look at the payload
// if the offload state vouches for it (Partial, Verified) and for a fragment,
// whose checksum covers bytes that are elsewhere. A UDP checksum of 0 is OK over
// IPv4 (RFC 768) and bad over IPv6 (RFC 8200 section 8.1) in every case.
// After OK for a whole packet GSO.Verified is set, so that nobody does it twice.
func (p *Parsed) VerifyChecksum() Reason {
	if p.GSO.Partial || !p.Transport {
		return OK
	}
	b := p.Data[p.L4:]
	var sum uint16
	switch p.Proto {
	case ProtoUDP:
		h := header.UDP(b)
		if h.Checksum() == 0 {
			if p.Version == 6 {
				return BadChecksum
			}
			return OK
		}
		if p.Fragment || p.GSO.Verified {
			return OK
		}
		b = b[:h.Length()]
		sum = p.pseudo(len(b))
	case ProtoTCP, ProtoICMPv6:
		sum = p.pseudo(len(b))
	}
	if p.Fragment || p.GSO.Verified {
		return OK
	}
	if checksum.Checksum(b, sum) != 0xffff {
		return BadChecksum
	}
	p.GSO.Verified = true
	return OK
}

// AdjustChecksum applies changes to the transport checksum of p: addr for
// addresses in the pseudo-header, body for words of the transport header
// (ports, echo identifier, options). It does what the protocol and the offload
// state ask for: nothing for a later fragment; only addr for a partial
// checksum, whose body the kernel has yet to add; body alone for ICMP, which
// has no pseudo-header; UDP's zero kept.
func (p *Parsed) AdjustChecksum(addr, body Delta) {
	if !p.Transport {
		return
	}
	var f []byte
	switch p.Proto {
	case ProtoTCP:
		f = p.Data[p.L4+header.TCPChecksumOffset:]
	case ProtoUDP:
		f = p.Data[p.L4+udpChecksumOffset:]
	case ProtoICMP:
		f, addr = p.Data[p.L4+2:], 0
	case ProtoICMPv6:
		f = p.Data[p.L4+2:]
	default:
		return
	}
	sum := binary.BigEndian.Uint16(f)
	switch {
	case p.GSO.Partial:
		sum = addr.Partial(sum)
	case p.Proto == ProtoUDP:
		sum = addr.Plus(body).UDP(sum)
	default:
		sum = addr.Plus(body).Full(sum)
	}
	binary.BigEndian.PutUint16(f, sum)
}
