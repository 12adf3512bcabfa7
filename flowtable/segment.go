package flowtable

import "github.com/fe919326/spillway/internal/packet"

// Segment is what Observe must know about a packet, or about a super-packet
// that stands for several. The zero value with Wire and Bytes set describes a
// datagram.
type Segment struct {
	Flags    uint8 // TCP flags (packet.SYN and so on)
	Seq, Ack uint32
	Window   uint16 // as in the header, not scaled
	// Scale is the window scale option of a SYN (RFC 7323 section 2), at most
	// 14. Valid iff HasScale.
	Scale    uint8
	HasScale bool
	// MSS is the maximum segment size option of a SYN, 0 if there is none.
	MSS uint16
	// Len is the TCP payload in bytes, of all wire segments together.
	Len uint32
	// Wire is the number of packets on the wire, at least 1.
	Wire uint32
	// Bytes is the number of IP bytes on the wire: every segment of a
	// super-packet has headers of its own.
	Bytes uint32
}

// maxScale is the largest window scale (RFC 7323 section 2.3).
const maxScale = 14

// TCP option kinds (IANA).
const (
	optEnd   = 0
	optNop   = 1
	optMSS   = 2
	optScale = 3
)

// SegmentOf fills s from a parsed packet whose Transport is set.
func SegmentOf(p *packet.Parsed, s *Segment) {
	payload := max(len(p.Data)-int(p.Payload), 0)
	wire := p.GSO.Segments(payload)
	*s = Segment{Wire: uint32(wire), Bytes: uint32(len(p.Data) + (wire-1)*int(p.Payload))}
	if p.Proto != packet.ProtoTCP {
		return
	}
	s.Flags, s.Seq, s.Ack, s.Window, s.Len = p.Flags, p.Seq, p.Ack, p.Window, uint32(payload)
	const fixed = 20 // TCP header without options
	if from, to := int(p.L4)+fixed, int(p.Payload); p.Flags&packet.SYN != 0 && from < to && to <= len(p.Data) {
		s.options(p.Data[from:to])
	}
}

// options reads the options of a SYN. Malformed ones end the reading: the end
// host decides about them.
func (s *Segment) options(o []byte) {
	for len(o) > 0 {
		switch o[0] {
		case optEnd:
			return
		case optNop:
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return
		}
		switch n := o[1]; {
		case o[0] == optMSS && n == 4:
			s.MSS = uint16(o[2])<<8 | uint16(o[3])
		case o[0] == optScale && n == 3:
			s.Scale, s.HasScale = min(o[2], maxScale), true
		}
		o = o[o[1]:]
	}
}

// end is the sequence number behind s: payload, SYN and FIN count.
func (s *Segment) end() uint32 {
	end := s.Seq + s.Len
	if s.Flags&packet.SYN != 0 {
		end++
	}
	if s.Flags&packet.FIN != 0 {
		end++
	}
	return end
}

// is reports whether exactly the flags want are set among those in mask.
func (s *Segment) is(mask, want uint8) bool { return s.Flags&mask == want }

// startsTCP reports whether s may start a TCP flow: SYN alone (T4).
func (s *Segment) startsTCP() bool {
	return s.is(packet.SYN|packet.ACK|packet.RST|packet.FIN, packet.SYN)
}
