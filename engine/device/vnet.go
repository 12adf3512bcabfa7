package device

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/fe919326/spillway/internal/packet"
)

// The virtio-net header in front of every packet of a TUN with IFF_VNET_HDR:
// struct virtio_net_hdr of linux/virtio_net.h, in native byte order (legacy
// virtio; a TUN keeps to it unless told TUNSETVNETLE).
//
//	u8 flags, u8 gso_type, u16 hdr_len, u16 gso_size, u16 csum_start, u16 csum_offset
const (
	vnetLen = 10

	vnetNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	vnetDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	vnetGSONone  = 0    // VIRTIO_NET_HDR_GSO_NONE
	vnetGSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	vnetGSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	vnetGSOUDPL4 = 5    // VIRTIO_NET_HDR_GSO_UDP_L4
	vnetGSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN, a flag beside TCPV4 and TCPV6
)

// Bounds on the segments of one super-packet that is read. The kernel keeps
// them too, but a guest with a packet socket may ask for anything.
const (
	// minTCPSize is the smallest payload of a segment: the smallest MSS that
	// Linux accepts, 48, less 40 bytes of options (TCP_MIN_GSO_SIZE).
	minTCPSize = 8
	// maxUDPSegments is the kernel's UDP_MAX_SEGMENTS since 6.9.
	maxUDPSegments = 128
	// maxExtensions bounds the walk over IPv6 extension headers.
	maxExtensions = 8
)

// decodeVnet reads the virtio-net header hdr (at least vnetLen bytes) of the
// packet data and fills gso. It believes nothing: hdr_len is not used, and
// every other field must agree with the packet's own headers. It returns OK or
// BadOffload. A packet without any offload is not looked at.
func decodeVnet(hdr, data []byte, gso *packet.GSO) packet.Reason {
	_ = hdr[vnetLen-1]
	flags, typ := hdr[0], hdr[1]
	if typ == vnetGSONone && flags&vnetNeedsCsum == 0 {
		*gso = packet.GSO{Verified: flags&vnetDataValid != 0}
		return packet.OK
	}
	proto, l4, ok := transport(data)
	if !ok || flags&vnetNeedsCsum == 0 {
		// A super-packet always has its checksum left open: its segments'
		// checksums do not exist yet.
		return packet.BadOffload
	}
	hdrLen, csumOffset := l4, 0
	switch proto {
	case packet.ProtoTCP:
		if len(data) < l4+header.TCPMinimumSize {
			return packet.BadOffload
		}
		n := int(header.TCP(data[l4:]).DataOffset())
		if n < header.TCPMinimumSize || len(data) < l4+n {
			return packet.BadOffload
		}
		hdrLen, csumOffset = l4+n, header.TCPChecksumOffset
	case packet.ProtoUDP:
		if len(data) < l4+header.UDPMinimumSize {
			return packet.BadOffload
		}
		hdrLen, csumOffset = l4+header.UDPMinimumSize, udpChecksumOffset
	default:
		return packet.BadOffload
	}
	if int(binary.NativeEndian.Uint16(hdr[6:])) != l4 || int(binary.NativeEndian.Uint16(hdr[8:])) != csumOffset {
		return packet.BadOffload
	}
	*gso = packet.GSO{
		Partial: true, HdrLen: uint16(hdrLen),
		CsumStart: uint16(l4), CsumOffset: uint16(csumOffset),
	}
	if typ == vnetGSONone {
		return packet.OK
	}
	size, payload := int(binary.NativeEndian.Uint16(hdr[4:])), len(data)-hdrLen
	v4 := data[0]>>4 == header.IPv4Version
	switch {
	case typ&^vnetGSOECN == vnetGSOTCPv4 && v4 && proto == packet.ProtoTCP && size >= minTCPSize:
		gso.Type = packet.GSOTCP4
	case typ&^vnetGSOECN == vnetGSOTCPv6 && !v4 && proto == packet.ProtoTCP && size >= minTCPSize:
		gso.Type = packet.GSOTCP6
	case typ == vnetGSOUDPL4 && proto == packet.ProtoUDP && size >= 1 && payload <= size*maxUDPSegments:
		gso.Type = packet.GSOUDP
	default:
		return packet.BadOffload
	}
	if payload <= size {
		gso.Type = packet.GSONone // one segment: a plain packet
		return packet.OK
	}
	gso.Size = uint16(size)
	return packet.OK
}

// udpChecksumOffset is the offset of the checksum in a UDP header (RFC 768).
const udpChecksumOffset = 6

// transport finds the transport header of a packet that is no fragment and
// whose IP length is exactly len(data). It is only for packets with offloads,
// and as narrow as what a kernel offloads.
func transport(data []byte) (proto uint8, l4 int, ok bool) {
	if len(data) < header.IPv4MinimumSize {
		return 0, 0, false
	}
	switch data[0] >> 4 {
	case header.IPv4Version:
		h := header.IPv4(data)
		l4 = int(h.HeaderLength())
		if l4 < header.IPv4MinimumSize || l4 > len(data) || int(h.TotalLength()) != len(data) ||
			h.More() || h.FragmentOffset() != 0 {
			return 0, 0, false
		}
		return h.Protocol(), l4, true
	case header.IPv6Version:
		if len(data) < header.IPv6MinimumSize {
			return 0, 0, false
		}
		h := header.IPv6(data)
		if int(h.PayloadLength())+header.IPv6MinimumSize != len(data) {
			return 0, 0, false
		}
		proto, l4 = h.NextHeader(), header.IPv6MinimumSize
		for range maxExtensions {
			switch header.IPv6ExtensionHeaderIdentifier(proto) {
			case header.IPv6HopByHopOptionsExtHdrIdentifier, header.IPv6RoutingExtHdrIdentifier,
				header.IPv6DestinationOptionsExtHdrIdentifier:
				if len(data) < l4+8 {
					return 0, 0, false
				}
				proto, l4 = data[l4], l4+8+int(data[l4+1])*8
			case header.IPv6FragmentExtHdrIdentifier:
				return 0, 0, false
			default:
				return proto, l4, l4 <= len(data)
			}
		}
	}
	return 0, 0, false
}

// encodeVnet writes the virtio-net header that describes gso into hdr, which
// has at least vnetLen bytes; further bytes are set to zero.
func encodeVnet(hdr []byte, gso *packet.GSO) {
	_ = hdr[vnetLen-1]
	clear(hdr)
	if !gso.Partial {
		if gso.Verified {
			hdr[0] = vnetDataValid
		}
		return
	}
	hdr[0] = vnetNeedsCsum
	binary.NativeEndian.PutUint16(hdr[6:], gso.CsumStart)
	binary.NativeEndian.PutUint16(hdr[8:], gso.CsumOffset)
	switch gso.Type {
	case packet.GSOTCP4:
		hdr[1] = vnetGSOTCPv4
	case packet.GSOTCP6:
		hdr[1] = vnetGSOTCPv6
	case packet.GSOUDP:
		hdr[1] = vnetGSOUDPL4
	default:
		return
	}
	binary.NativeEndian.PutUint16(hdr[2:], gso.HdrLen)
	binary.NativeEndian.PutUint16(hdr[4:], gso.Size)
}
