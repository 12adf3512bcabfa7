package pkt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/internal/packet"
)

// Sum adds the 16-bit words of b, an odd last byte padded with zero
// (RFC 1071 section 1). It does not fold: b must be shorter than 128 KiB.
func Sum(b []byte) uint32 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		if i+1 < len(b) {
			s += uint32(b[i])<<8 | uint32(b[i+1])
		} else {
			s += uint32(b[i]) << 8
		}
	}
	// Keep room for whatever the caller adds.
	return uint32(fold(s))
}

// PseudoSum adds the words of the pseudo-header for n bytes of protocol proto
// (RFC 9293 section 3.1, RFC 8200 section 8.1).
func PseudoSum(src, dst netip.Addr, proto uint8, n int) uint32 {
	return Sum(src.Unmap().AsSlice()) + Sum(dst.Unmap().AsSlice()) + uint32(proto) + uint32(n)
}

// fold adds the carries back into 16 bits.
func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// Check reads a packet as its receiver would and returns the first thing that
// is wrong with it: lengths that disagree with the bytes, or a checksum (IPv4
// header, TCP, UDP, ICMP, ICMPv6) that does not add up. It knows nothing about
// offloads: a partial checksum is an error.
func Check(data []byte) error {
	p, err := split(data)
	if err != nil {
		return err
	}
	if !p.v6 {
		if s := fold(Sum(data[:p.hdr])); s != 0xffff {
			return fmt.Errorf("IPv4 header adds up to %#04x", s)
		}
	}
	if p.fragment {
		return nil // its checksum covers the whole datagram
	}
	l4 := data[p.l4:]
	sum := Sum(l4)
	switch p.proto {
	case packet.ProtoTCP:
		if len(l4) < 20 || int(l4[12]>>4)*4 > len(l4) || l4[12]>>4 < 5 {
			return errors.New("TCP header does not fit")
		}
		sum += PseudoSum(p.src, p.dst, p.proto, len(l4))
	case packet.ProtoUDP:
		if len(l4) < 8 || int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
			return errors.New("UDP length disagrees with the IP length")
		}
		if l4[6] == 0 && l4[7] == 0 {
			if p.v6 {
				return errors.New("UDP checksum 0 over IPv6")
			}
			return nil
		}
		sum += PseudoSum(p.src, p.dst, p.proto, len(l4))
	case packet.ProtoICMPv6:
		sum += PseudoSum(p.src, p.dst, p.proto, len(l4))
		if len(l4) < 4 {
			return errors.New("ICMPv6 header does not fit")
		}
	case packet.ProtoICMP:
		if len(l4) < 4 {
			return errors.New("ICMP header does not fit")
		}
	default:
		return nil
	}
	if s := fold(sum); s != 0xffff {
		return fmt.Errorf("protocol %d adds up to %#04x", p.proto, s)
	}
	return nil
}

// parts is a packet taken apart by the slow and obvious method.
type parts struct {
	v6       bool
	src, dst netip.Addr
	proto    uint8
	hdr      int // length of the IP header, extension headers not included
	l4       int
	last     int // offset of the byte that names proto
	fragment bool
}

// split takes a packet apart.
func split(data []byte) (parts, error) {
	var p parts
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		p.hdr = int(data[0]&0xf) * 4
		p.l4, p.proto, p.last = p.hdr, data[9], 9
		p.src, p.dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
		p.fragment = binary.BigEndian.Uint16(data[6:])&0x3fff != 0
		if p.hdr < 20 || p.hdr > len(data) {
			return p, errors.New("IPv4 header length is impossible")
		}
		if n := int(binary.BigEndian.Uint16(data[2:])); n != len(data) {
			return p, fmt.Errorf("IPv4 total length %d, but %d bytes", n, len(data))
		}
		return p, nil
	case len(data) >= 40 && data[0]>>4 == 6:
		p.v6, p.hdr, p.l4, p.proto, p.last = true, 40, 40, data[6], 6
		p.src, p.dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
		if n := 40 + int(binary.BigEndian.Uint16(data[4:])); n != len(data) {
			return p, fmt.Errorf("IPv6 length %d, but %d bytes", n, len(data))
		}
		for {
			n := 0
			switch p.proto {
			case 0, 43, 60, 135, 139, 140:
				n = 8
				if p.l4+2 <= len(data) {
					n = 8 + int(data[p.l4+1])*8
				}
			case 51:
				n = 8
				if p.l4+2 <= len(data) {
					n = 8 + int(data[p.l4+1])*4
				}
			case 44:
				n = 8
				if p.l4+8 <= len(data) {
					p.fragment = binary.BigEndian.Uint16(data[p.l4+2:])&0xfff9 != 0
				}
			default:
				return p, nil
			}
			if p.l4+n > len(data) {
				return p, errors.New("IPv6 extension header does not fit")
			}
			p.last = p.l4
			p.proto = data[p.l4]
			first := p.fragment && binary.BigEndian.Uint16(data[p.l4+2:])&0xfff8 == 0
			p.l4 += n
			if p.fragment && !first {
				return p, nil
			}
		}
	}
	return p, errors.New("neither an IPv4 nor an IPv6 header")
}
