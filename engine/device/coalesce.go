package device

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fe919326/spillway/internal/packet"
)

const (
	// maxTrains is the number of flows that are merged at a time within one
	// Write. With more, trains leave in turn.
	maxTrains = 16
	// maxTrainUDP is the most datagrams in one train: UDP_MAX_SEGMENTS before
	// Linux 6.9.
	maxTrainUDP = 64
	// maxTrainHdr is the longest header of a packet that is merged: IPv6
	// without extension headers and TCP with all options.
	maxTrainHdr = header.IPv6MinimumSize + header.TCPHeaderMaximumSize
	// noPacket ends a list of packets.
	noPacket = -1
)

// train is a run of packets of one flow that differ only in what the kernel
// restores when it cuts a super-packet: sequence number, length, checksum,
// identification, and PSH on the last.
type train struct {
	port       uint32
	flow       uint32         // hash of the flow
	kind       packet.GSOType // GSOTCP4, GSOTCP6 or GSOUDP
	verified   bool           // the first packet's checksums are known to be right
	l4, hdrLen int
	head, tail int    // index of the first and last packet; see coalescer.next
	n          int    // packets
	size       int    // payload of each packet but the last
	length     int    // headers once and all payloads
	nextSeq    uint32 // TCP
	nextID     uint16 // IPv4
}

// coalescer finds trains in the packets of one Write.
type coalescer struct {
	trains [maxTrains]train
	open   int // trains in use: the first ones
	victim int // the train that leaves next for want of room
	// next links the packets of a train.
	next [packet.MaxBatch]int
}

// car is what classify finds in a packet.
type car struct {
	// flow hashes protocol, addresses and ports; 0 for what has none: other
	// protocols, fragments, and what is malformed.
	flow uint32
	// barrier says that the packet belongs to a flow which cannot be told: a
	// fragment, or behind extension headers. No train between its addresses
	// may be overtaken by it.
	barrier bool
	// kind is not GSONone iff the packet may be part of a train.
	kind       packet.GSOType
	l4, hdrLen int
	payload    int
	seq        uint32
	id         uint16
	// last says that nothing may follow: PSH.
	last bool
}

// trainFlags are the TCP flags a packet of a train may have: ACK always, ECE
// on all or none, PSH on the last. CWR, SYN, FIN, RST and URG say something
// about one segment only.
const trainFlags = packet.ACK | packet.ECE | packet.PSH

// classify looks at the headers of pk without changing it. It believes no
// length.
func classify(pk *packet.Packet, c *car) {
	*c = car{}
	b := pk.Data
	if len(b) < header.IPv4MinimumSize {
		return
	}
	var proto uint8
	mergeable := pk.GSO.Type == packet.GSONone
	switch b[0] >> 4 {
	case header.IPv4Version:
		h := header.IPv4(b)
		c.l4 = int(h.HeaderLength())
		if c.l4 < header.IPv4MinimumSize || int(h.TotalLength()) != len(b) {
			return
		}
		if h.More() || h.FragmentOffset() != 0 {
			c.barrier = true
			return
		}
		proto, c.id = h.Protocol(), h.ID()
		// No options, and not the reserved bit.
		mergeable = mergeable && c.l4 == header.IPv4MinimumSize && b[6]&0x80 == 0
	case header.IPv6Version:
		if len(b) < header.IPv6MinimumSize {
			return
		}
		h := header.IPv6(b)
		if int(h.PayloadLength())+header.IPv6MinimumSize != len(b) {
			return
		}
		proto, c.l4 = h.NextHeader(), header.IPv6MinimumSize
	default:
		return
	}
	v4 := b[0]>>4 == header.IPv4Version
	switch proto {
	case packet.ProtoTCP:
		if len(b) < c.l4+header.TCPMinimumSize {
			return
		}
		h := header.TCP(b[c.l4:])
		c.hdrLen = c.l4 + int(h.DataOffset())
		c.seq = h.SequenceNumber()
		flags := uint8(h.Flags())
		c.last = flags&packet.PSH != 0
		c.payload = len(b) - c.hdrLen
		// The low four bits beside the data offset are reserved or AccECN's.
		if mergeable && flags&^trainFlags == 0 && flags&packet.ACK != 0 && h[12]&0xf == 0 &&
			c.hdrLen >= c.l4+header.TCPMinimumSize && c.payload >= minTCPSize {
			if c.kind = packet.GSOTCP6; v4 {
				c.kind = packet.GSOTCP4
			}
		}
	case packet.ProtoUDP:
		if len(b) < c.l4+header.UDPMinimumSize {
			return
		}
		h := header.UDP(b[c.l4:])
		c.hdrLen = c.l4 + header.UDPMinimumSize
		c.payload = len(b) - c.hdrLen
		// No checksum (IPv4) stays no checksum; an empty datagram stays alone.
		if mergeable && c.payload > 0 && int(h.Length()) == len(b)-c.l4 && (h.Checksum() != 0 || pk.GSO.Partial) {
			c.kind = packet.GSOUDP
		}
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return
	default:
		c.barrier = !v4
		return
	}
	if pk.GSO.Partial && (int(pk.GSO.CsumStart) != c.l4 || int(pk.GSO.CsumOffset) != csumOffset(c.kind)) {
		c.kind = packet.GSONone
	}
	c.flow = flowHash(b, proto, c.l4, v4)
}

func csumOffset(k packet.GSOType) int {
	if k == packet.GSOUDP {
		return udpChecksumOffset
	}
	return header.TCPChecksumOffset
}

// flowHash is not 0. It needs no secret: two flows with one hash only cost
// each other their trains.
func flowHash(b []byte, proto uint8, l4 int, v4 bool) uint32 {
	h := uint64(binary.LittleEndian.Uint32(b[l4:])) | uint64(proto)<<32
	if v4 {
		h ^= binary.LittleEndian.Uint64(b[12:]) * 0x9e3779b97f4a7c15
	} else {
		h ^= binary.LittleEndian.Uint64(b[8:])*0x9e3779b97f4a7c15 + binary.LittleEndian.Uint64(b[16:])*0xc2b2ae3d27d4eb4f
		h ^= binary.LittleEndian.Uint64(b[24:])*0x165667b19e3779f9 + binary.LittleEndian.Uint64(b[32:])*0x27d4eb2f165667c5
	}
	h *= 0xff51afd7ed558ccd
	h ^= h >> 32
	return uint32(h) | 1
}

// find returns the train of the flow to the port, or nil.
func (c *coalescer) find(port, flow uint32) *train {
	for i := range c.trains[:c.open] {
		if t := &c.trains[i]; t.flow == flow && t.port == port {
			return t
		}
	}
	return nil
}

// start makes a new train of packet i. There must be room.
func (c *coalescer) start(port uint32, pk *packet.Packet, i int, k *car) *train {
	t := &c.trains[c.open]
	c.open++
	*t = train{
		port: port, flow: k.flow, kind: k.kind, l4: k.l4, hdrLen: k.hdrLen,
		head: i, tail: i, n: 1, size: k.payload, length: len(pk.Data),
		nextSeq: k.seq + uint32(k.payload), nextID: k.id + 1,
	}
	c.next[i] = noPacket
	return t
}

// remove forgets train t; the last one takes its place.
func (c *coalescer) remove(t *train) {
	c.open--
	*t = c.trains[c.open]
}

// evict returns the train that is to leave when all are in use.
func (c *coalescer) evict() *train {
	c.victim = (c.victim + 1) % maxTrains
	return &c.trains[c.victim]
}

// full reports whether nothing more may follow in t.
func (t *train) full(k *car) bool {
	return k.last || k.payload < t.size || t.length+t.size > packet.MaxPacket ||
		t.kind == packet.GSOUDP && t.n == maxTrainUDP
}

// join appends packet i to t and reports whether it did. If it did not, t must
// leave before the packet does.
func (c *coalescer) join(t *train, pkts []packet.Packet, i int, k *car) bool {
	pk, first := &pkts[i], &pkts[t.head]
	if k.kind != t.kind || k.hdrLen != t.hdrLen || k.payload > t.size ||
		t.length+k.payload > packet.MaxPacket || !sameHeaders(first.Data, pk.Data, t, k) {
		return false
	}
	// Merging makes the kernel compute the checksums anew, so a wrong one
	// would become right: nothing is merged that has not been verified.
	if !t.verified {
		if !intact(first, t.l4) {
			return false
		}
		t.verified = true
	}
	if !intact(pk, t.l4) {
		return false
	}
	c.next[t.tail], c.next[i] = i, noPacket
	t.tail = i
	t.n++
	t.length += k.payload
	t.nextSeq += uint32(k.payload)
	t.nextID++
	return true
}

// sameAddresses reports whether two packets that classify has seen go between
// the same addresses.
func sameAddresses(a, b []byte) bool {
	if a[0]>>4 != b[0]>>4 {
		return false
	}
	if a[0]>>4 == header.IPv4Version {
		return [8]byte(a[12:]) == [8]byte(b[12:])
	}
	return [32]byte(a[8:]) == [32]byte(b[8:])
}

// sameHeaders reports whether b continues the train that starts with a: all
// header bytes equal but those that segmentation restores.
func sameHeaders(a, b []byte, t *train, k *car) bool {
	const w = 4
	be := binary.BigEndian
	if t.l4 == header.IPv4MinimumSize {
		// Version, IHL, TOS; flags; TTL, protocol; addresses.
		if be.Uint16(a) != be.Uint16(b) || a[6] != b[6] || be.Uint16(a[8:]) != be.Uint16(b[8:]) ||
			be.Uint64(a[12:]) != be.Uint64(b[12:]) {
			return false
		}
		// With DF the identification means nothing (RFC 6864 section 4).
		if a[6]&0x40 == 0 && k.id != t.nextID {
			return false
		}
	} else {
		// Version, traffic class, flow label; next header, hop limit; addresses.
		if be.Uint32(a) != be.Uint32(b) || be.Uint16(a[6:]) != be.Uint16(b[6:]) ||
			be.Uint64(a[8:]) != be.Uint64(b[8:]) || be.Uint64(a[16:]) != be.Uint64(b[16:]) ||
			be.Uint64(a[24:]) != be.Uint64(b[24:]) || be.Uint64(a[32:]) != be.Uint64(b[32:]) {
			return false
		}
	}
	a, b = a[t.l4:t.hdrLen], b[t.l4:t.hdrLen]
	if be.Uint32(a) != be.Uint32(b) { // ports
		return false
	}
	if t.kind == packet.GSOUDP {
		return true
	}
	const psh = uint32(packet.PSH) << 16
	// Acknowledgement; offset, flags, window; urgent pointer; options.
	if k.seq != t.nextSeq || be.Uint32(a[8:]) != be.Uint32(b[8:]) ||
		(be.Uint32(a[12:])^be.Uint32(b[12:]))&^psh != 0 || be.Uint16(a[18:]) != be.Uint16(b[18:]) {
		return false
	}
	for i := header.TCPMinimumSize; i+w <= len(a); i += w {
		if be.Uint32(a[i:]) != be.Uint32(b[i:]) {
			return false
		}
	}
	return true
}

// intact reports whether the IPv4 header checksum and the transport checksum
// of pk are right; a partial one must be the sum of the pseudo-header.
func intact(pk *packet.Packet, l4 int) bool {
	b := pk.Data
	if l4 == header.IPv4MinimumSize && checksum.Checksum(b[:l4], 0) != 0xffff {
		return false
	}
	if pk.GSO.Verified && !pk.GSO.Partial {
		return true
	}
	sum := pseudoSum(b, l4, len(b)-l4)
	if pk.GSO.Partial {
		return binary.BigEndian.Uint16(b[int(pk.GSO.CsumStart)+int(pk.GSO.CsumOffset):]) == sum
	}
	return checksum.Checksum(b[l4:], sum) == 0xffff
}

// pseudoSum is the sum of the pseudo-header of a packet whose transport header
// is at l4 without extension headers in between (RFC 9293 section 3.1, RFC
// 8200 section 8.1), not complemented.
func pseudoSum(b []byte, l4, length int) uint16 {
	if l4 == header.IPv4MinimumSize {
		sum := checksum.Checksum(b[12:20], uint16(b[9]))
		return checksum.Combine(sum, uint16(length))
	}
	sum := checksum.Checksum(b[8:40], uint16(b[6]))
	return checksum.Combine(sum, uint16(length))
}

// headers writes the virtio-net header and the packet headers of the
// super-packet that t becomes into dst, and returns how many bytes that is.
func (t *train) headers(dst []byte, front int, first, last []byte) int {
	gso := packet.GSO{
		Type: t.kind, Partial: true, HdrLen: uint16(t.hdrLen), Size: uint16(t.size),
		CsumStart: uint16(t.l4), CsumOffset: uint16(csumOffset(t.kind)),
	}
	encodeVnet(dst[:front], &gso)
	h := dst[front : front+t.hdrLen]
	copy(h, first[:t.hdrLen])
	be := binary.BigEndian
	if t.l4 == header.IPv4MinimumSize {
		ip := header.IPv4(h)
		ip.SetTotalLength(uint16(t.length))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		header.IPv6(h).SetPayloadLength(uint16(t.length - header.IPv6MinimumSize))
	}
	if t.kind == packet.GSOUDP {
		be.PutUint16(h[t.l4+4:], uint16(t.length-t.l4))
	} else {
		h[t.l4+header.TCPFlagsOffset] |= last[t.l4+header.TCPFlagsOffset] & packet.PSH
	}
	be.PutUint16(h[t.l4+csumOffset(t.kind):], pseudoSum(h, t.l4, t.length-t.l4))
	return front + t.hdrLen
}
