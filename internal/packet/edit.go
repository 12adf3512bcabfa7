package packet

import (
	"encoding/binary"
	"math/bits"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// DecrementTTL takes one off the TTL or hop limit of p, in Data and in TTL,
// and keeps the IPv4 header checksum right. It returns TTLExceeded and changes
// nothing where the packet would leave with 0 (RFC 1812 section 5.3.1, RFC 8200
// section 3).
func (p *Parsed) DecrementTTL() Reason {
	if p.TTL <= 1 {
		return TTLExceeded
	}
	p.TTL--
	b := p.Data
	if p.Version == 6 {
		header.IPv6(b).SetHopLimit(p.TTL)
		return OK
	}
	h := header.IPv4(b)
	old := binary.BigEndian.Uint16(b[8:10]) // TTL and protocol are one word
	h.SetTTL(p.TTL)
	h.SetChecksum(Update16(h.Checksum(), old, old-1<<8))
	return OK
}

// ClampMSS lowers the maximum segment size that a SYN or SYN-ACK announces to
// at most max bytes (RFC 9293 section 3.7.1, RFC 6691) and updates the
// checksum, complete or partial. It never raises one, adds none where there is
// none, and leaves every other packet alone. Should the option be there twice,
// both are lowered: which one counts is the receiver's choice. At an option
// that runs out of the header it stops, as receivers do.
func (p *Parsed) ClampMSS(max uint16) {
	if p.Proto != ProtoTCP || p.Flags&SYN == 0 || !p.Transport {
		return
	}
	start := int(p.L4) + header.TCPMinimumSize
	opts := p.Data[start:p.Payload]
	for i := 0; i < len(opts); {
		switch opts[i] {
		case header.TCPOptionEOL:
			return
		case header.TCPOptionNOP:
			i++
			continue
		}
		if i+1 >= len(opts) {
			return
		}
		n := int(opts[i+1])
		if n < 2 || i+n > len(opts) {
			return
		}
		if opts[i] == header.TCPOptionMSS && n == header.TCPOptionMSSLength {
			if old := binary.BigEndian.Uint16(opts[i+2:]); old > max {
				binary.BigEndian.PutUint16(opts[i+2:], max)
				d := Delta16(old, max)
				if i&1 != 0 {
					// Its bytes lie in two words, the other way round (RFC
					// 1071 section 2, byte order independence).
					d = Delta16(bits.ReverseBytes16(old), bits.ReverseBytes16(max))
				}
				p.AdjustChecksum(0, d)
			}
		}
		i += n
	}
}
