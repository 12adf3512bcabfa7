package pkt

import (
	"encoding/binary"

	"github.com/fe919326/spillway/internal/packet"
)

// Of appends data to b as an ordinary packet with a complete checksum. It
// panics if b is full: that is a bug of the test.
func Of(b *packet.Batch, data []byte) *packet.Packet {
	p := b.Append(data)
	if p == nil {
		panic("pkt: no room in the batch")
	}
	return p
}

// OfPacket appends a copy of p, offload state included, to b.
func OfPacket(b *packet.Batch, p packet.Packet) *packet.Packet {
	q := Of(b, p.Data)
	q.GSO, q.Port, q.Peer = p.GSO, p.Port, p.Peer
	return q
}

// Super returns a copy of a TCP or UDP packet as the super-packet a kernel
// hands over: to be cut into segments of size bytes of payload, with a partial
// checksum.
func Super(data []byte, size uint16) packet.Packet {
	p := Partial(data)
	s, _ := split(data)
	p.GSO.Size = size
	switch {
	case s.proto == packet.ProtoUDP:
		p.GSO.Type = packet.GSOUDP
	case s.v6:
		p.GSO.Type = packet.GSOTCP6
	default:
		p.GSO.Type = packet.GSOTCP4
	}
	return p
}

// Partial returns a copy of a TCP or UDP packet whose checksum field holds
// only the sum of the pseudo-header (CHECKSUM_PARTIAL in the kernel).
func Partial(data []byte) packet.Packet {
	s, err := split(data)
	if err != nil {
		panic("pkt: " + err.Error())
	}
	out := append([]byte(nil), data...)
	g := packet.GSO{Partial: true, CsumStart: uint16(s.l4)}
	switch s.proto {
	case packet.ProtoTCP:
		g.CsumOffset = 16
		g.HdrLen = uint16(s.l4) + uint16(out[s.l4+12]>>4)*4
	case packet.ProtoUDP:
		g.CsumOffset = 6
		g.HdrLen = uint16(s.l4) + 8
	default:
		panic("pkt: only TCP and UDP have partial checksums")
	}
	sum := fold(PseudoSum(s.src, s.dst, s.proto, len(out)-s.l4))
	binary.BigEndian.PutUint16(out[s.l4+int(g.CsumOffset):], sum)
	return packet.Packet{Data: out, GSO: g}
}

// Fragments cuts a packet into fragments of at most mtu bytes, in order, as a
// router (IPv4) or a sender (IPv6) would. IPv6 fragments carry id in a fragment
// header behind the fixed header; IPv4 fragments keep the packet's own.
func Fragments(data []byte, mtu int, id uint32) [][]byte {
	s, err := split(data)
	if err != nil || s.fragment {
		panic("pkt: not a whole packet")
	}
	front := s.hdr
	if s.v6 {
		front += 8
	}
	step := (mtu - front) &^ 7
	if step <= 0 {
		panic("pkt: mtu holds no fragment")
	}
	body := data[s.hdr:]
	var out [][]byte
	for off := 0; off < len(body); off += step {
		part := body[off:min(off+step, len(body))]
		more := off+len(part) < len(body)
		f := append(make([]byte, 0, front+len(part)), data[:s.hdr]...)
		if s.v6 {
			f = append(f, data[6], 0, 0, 0, 0, 0, 0, 0)
			f[6] = 44 // fragment header
			word := uint16(off)
			if more {
				word |= 1
			}
			binary.BigEndian.PutUint16(f[42:], word)
			binary.BigEndian.PutUint32(f[44:], id)
			binary.BigEndian.PutUint16(f[4:], length(8+len(part)))
		} else {
			word := uint16(off / 8)
			if more {
				word |= 0x2000
			}
			binary.BigEndian.PutUint16(f[6:], word)
			binary.BigEndian.PutUint16(f[2:], length(front+len(part)))
			fixHeader(f)
		}
		out = append(out, append(f, part...))
	}
	return out
}

// Edit returns a copy of data changed by f, with the IPv4 header checksum made
// right again (transport checksums are left as f leaves them). It makes the
// malformed packets of tables: pkt.Edit(p, func(b []byte) { b[33] = 0 }).
func Edit(data []byte, f func(b []byte)) []byte {
	out := append([]byte(nil), data...)
	f(out)
	if len(out) >= 20 && out[0]>>4 == 4 && int(out[0]&0xf)*4 >= 20 && int(out[0]&0xf)*4 <= len(out) {
		fixHeader(out[:int(out[0]&0xf)*4])
	}
	return out
}

// Chain returns IPv6 extension headers one behind the other for
// Opts.Extensions, each of eight bytes but for what the caller adds, and the
// protocol of the first for Opts.First. Kinds are protocol numbers; upper is
// the upper-layer protocol that the last one names.
func Chain(upper uint8, kinds ...uint8) (ext []byte, first uint8) {
	for i, k := range kinds {
		next := upper
		if i+1 < len(kinds) {
			next = kinds[i+1]
		}
		h := []byte{next, 0, 0, 0, 0, 0, 0, 0}
		switch k {
		case 0, 60: // options: one PadN over the rest
			h[2], h[3] = 1, 4
		case 51: // authentication header: its length counts words, less two
			h = append(h, 0, 0, 0, 0, 0, 0, 0, 0)
			h[1] = 2
		}
		ext = append(ext, h...)
	}
	if len(kinds) == 0 {
		return nil, upper
	}
	return ext, kinds[0]
}

// fixHeader fills in the checksum of an IPv4 header.
func fixHeader(h []byte) {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^fold(Sum(h)))
}
