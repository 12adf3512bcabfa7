// Package pkt builds IP packets for tests: small, complete, correct packets
// with every checksum filled in, from a handful of arguments.
//
// The family follows the addresses: two IPv4 addresses make an IPv4 packet,
// two IPv6 addresses an IPv6 one. Whatever the short functions leave at its
// default can be set through Opts:
//
//	syn := pkt.TCP(client, server, packet.SYN, 1000, 0, nil)
//	old := pkt.Opts{TTL: 1, TCPOptions: pkt.MSS(1460)}.TCP(client, server, packet.SYN, 1000, 0, nil)
//
// Checksums are computed here by the slow and obvious method, on purpose not
// with the code under test. A builder panics on arguments that make no packet,
// such as two families in one call: that is a bug of the test.
package pkt

import (
	"encoding/binary"
	"net/netip"

	"github.com/fe919326/spillway/internal/packet"
)

// Kind tells an echo request from an echo reply.
type Kind uint8

// The kinds of echo message.
const (
	Request Kind = iota
	Reply
)

// Opts are the parts of a packet that tests rarely care about. The zero Opts
// makes what a normal stack sends: TTL 64, DF set, ID 0, a window of 65,535,
// no options and no extension headers.
type Opts struct {
	TTL  uint8 // default 64; see ZeroTTL
	TOS  uint8 // DSCP and ECN; the IPv6 traffic class
	Flow uint32
	// ID is the IPv4 identification, or that of the IPv6 fragment header that
	// Fragments makes.
	ID uint16
	// MayFragment clears DF (IPv4).
	MayFragment bool
	// ZeroTTL makes the TTL 0, which TTL: 0 cannot say.
	ZeroTTL bool
	// IPOptions follow the fixed IPv4 header, padded with EOL to 4 bytes.
	IPOptions []byte
	// Extensions are whole IPv6 extension headers, the last of which must name
	// the upper protocol itself; First is the protocol of the first of them.
	// See Chain.
	Extensions []byte
	First      uint8

	Window     uint16 // TCP; default 65,535; see ZeroWindow
	ZeroWindow bool
	Urgent     uint16
	// TCPOptions follow the fixed TCP header, padded with EOL to 4 bytes.
	TCPOptions []byte
	// Reserved are the four bits between data offset and flags (bit 0 is AE).
	Reserved uint8
	// NoChecksum leaves the UDP checksum 0.
	NoChecksum bool
}

// TCP returns a TCP segment with default options.
func TCP(src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) []byte {
	return Opts{}.TCP(src, dst, flags, seq, ack, payload)
}

// UDP returns a UDP datagram with default options.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	return Opts{}.UDP(src, dst, payload)
}

// Echo returns an ICMP or ICMPv6 echo message with default options.
func Echo(src, dst netip.Addr, id, seq uint16, kind Kind, payload []byte) []byte {
	return Opts{}.Echo(src, dst, id, seq, kind, payload)
}

// ICMP returns an ICMP or ICMPv6 message: type, code, the second word of its
// header (MTU, pointer, unused) and the body, which for an error is the quoted
// packet.
func ICMP(src, dst netip.Addr, typ, code uint8, word uint32, body []byte) []byte {
	return Opts{}.ICMP(src, dst, typ, code, word, body)
}

// Raw returns a packet of any upper-layer protocol.
func Raw(src, dst netip.Addr, proto uint8, body []byte) []byte {
	return Opts{}.Raw(src, dst, proto, body)
}

// TCP returns a TCP segment.
func (o Opts) TCP(src, dst netip.AddrPort, flags uint8, seq, ack uint32, payload []byte) []byte {
	opt := pad4(o.TCPOptions)
	h := make([]byte, 20, 20+len(opt)+len(payload))
	binary.BigEndian.PutUint16(h[0:], src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12] = uint8(20+len(opt))/4<<4 | o.Reserved&0xf
	h[13] = flags
	win := o.Window
	if win == 0 && !o.ZeroWindow {
		win = 65535
	}
	binary.BigEndian.PutUint16(h[14:], win)
	binary.BigEndian.PutUint16(h[18:], o.Urgent)
	h = append(append(h, opt...), payload...)
	binary.BigEndian.PutUint16(h[16:], ^fold(PseudoSum(src.Addr(), dst.Addr(), packet.ProtoTCP, len(h))+Sum(h)))
	return o.Raw(src.Addr(), dst.Addr(), packet.ProtoTCP, h)
}

// UDP returns a UDP datagram.
func (o Opts) UDP(src, dst netip.AddrPort, payload []byte) []byte {
	h := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(h[0:], src.Port())
	binary.BigEndian.PutUint16(h[2:], dst.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(payload)))
	h = append(h, payload...)
	if !o.NoChecksum {
		sum := ^fold(PseudoSum(src.Addr(), dst.Addr(), packet.ProtoUDP, len(h)) + Sum(h))
		if sum == 0 {
			sum = 0xffff // RFC 768: 0 means "none"
		}
		binary.BigEndian.PutUint16(h[6:], sum)
	}
	return o.Raw(src.Addr(), dst.Addr(), packet.ProtoUDP, h)
}

// Echo returns an ICMP or ICMPv6 echo message.
func (o Opts) Echo(src, dst netip.Addr, id, seq uint16, kind Kind, payload []byte) []byte {
	typ := uint8(8) // RFC 792
	if v6(src) {
		typ = 128 // RFC 4443
	}
	if kind == Reply {
		if v6(src) {
			typ = 129
		} else {
			typ = 0
		}
	}
	return o.ICMP(src, dst, typ, 0, uint32(id)<<16|uint32(seq), payload)
}

// ICMP returns an ICMP or ICMPv6 message.
func (o Opts) ICMP(src, dst netip.Addr, typ, code uint8, word uint32, body []byte) []byte {
	h := make([]byte, 8, 8+len(body))
	h[0], h[1] = typ, code
	binary.BigEndian.PutUint32(h[4:], word)
	h = append(h, body...)
	sum := Sum(h)
	proto := uint8(packet.ProtoICMP)
	if v6(src) {
		proto = packet.ProtoICMPv6
		sum += PseudoSum(src, dst, proto, len(h))
	}
	binary.BigEndian.PutUint16(h[2:], ^fold(sum))
	return o.Raw(src, dst, proto, h)
}

// Raw returns a packet of any upper-layer protocol around body.
func (o Opts) Raw(src, dst netip.Addr, proto uint8, body []byte) []byte {
	ttl := o.TTL
	if ttl == 0 && !o.ZeroTTL {
		ttl = 64
	}
	src, dst = src.Unmap(), dst.Unmap()
	if src.Is4() != dst.Is4() || !src.IsValid() || !dst.IsValid() {
		panic("pkt: " + src.String() + " and " + dst.String() + " are not of one family")
	}
	if src.Is4() {
		opt := pad4(o.IPOptions)
		h := make([]byte, 20, 20+len(opt)+len(body))
		h[0] = 4<<4 | uint8(20+len(opt))/4
		h[1] = o.TOS
		binary.BigEndian.PutUint16(h[2:], length(20+len(opt)+len(body)))
		binary.BigEndian.PutUint16(h[4:], o.ID)
		if !o.MayFragment {
			h[6] = 0x40 // DF
		}
		h[8], h[9] = ttl, proto
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		h = append(h, opt...)
		binary.BigEndian.PutUint16(h[10:], ^fold(Sum(h)))
		return append(h, body...)
	}
	h := make([]byte, 40, 40+len(o.Extensions)+len(body))
	binary.BigEndian.PutUint32(h, 6<<28|uint32(o.TOS)<<20|o.Flow&0xfffff)
	binary.BigEndian.PutUint16(h[4:], length(len(o.Extensions)+len(body)))
	h[6], h[7] = proto, ttl
	if len(o.Extensions) > 0 {
		h[6] = o.First
	}
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(append(h, o.Extensions...), body...)
}

// v6 reports whether a makes an IPv6 packet.
func v6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// length returns n as a 16-bit length, or panics.
func length(n int) uint16 {
	if n > 65535 {
		panic("pkt: longer than an IP packet can be")
	}
	return uint16(n)
}

// pad4 returns o filled up with zeros, which are end-of-list options, to a
// multiple of four bytes.
func pad4(o []byte) []byte {
	out := append([]byte(nil), o...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return out
}

// MSS returns the bytes of a maximum segment size option (RFC 9293 section
// 3.7.1).
func MSS(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }
