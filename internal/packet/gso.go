package packet

// GSOType says how a super-packet is cut, after VIRTIO_NET_HDR_GSO_* (virtio
// 1.3 section 5.1.6, linux/virtio_net.h).
type GSOType uint8

// The GSO types.
const (
	GSONone GSOType = iota // one wire packet
	GSOTCP4                // TCP over IPv4
	GSOTCP6                // TCP over IPv6
	GSOUDP                 // UDP datagrams of Size bytes each (UDP_SEGMENT), both families
)

// GSO is the offload state of a packet, as told by the kernel (and checked by
// the device: a GSO that reached the engine does not lie) or as wished for a
// write. The zero value is an ordinary packet with a complete transport
// checksum.
type GSO struct {
	Type GSOType
	// Partial says that the transport checksum field holds only the sum of the
	// pseudo-header, not complemented (VIRTIO_NET_HDR_F_NEEDS_CSUM,
	// CHECKSUM_PARTIAL in the kernel). Always true if Type is not GSONone.
	Partial bool
	// Verified says that someone trustworthy has verified the complete
	// checksum (VIRTIO_NET_HDR_F_DATA_VALID, or our own check). A Partial
	// checksum counts as verified: the bytes never left a kernel's memory.
	Verified bool
	// HdrLen is the length of all headers, from the IP header to the end of
	// the TCP or UDP header, in bytes. Valid iff Type is not GSONone or
	// Partial is set.
	HdrLen uint16
	// Size is the payload of each wire segment but the last, in bytes. Valid
	// iff Type is not GSONone; then it is at least 1.
	Size uint16
	// CsumStart is the offset of the transport header, CsumOffset that of the
	// checksum field in it. Valid iff Partial.
	CsumStart, CsumOffset uint16
}

// Segments returns the number of wire packets that n bytes of payload become:
// the count that counters and logs use.
func (g GSO) Segments(payload int) int {
	if g.Type == GSONone || g.Size == 0 || payload <= int(g.Size) {
		return 1
	}
	return (payload + int(g.Size) - 1) / int(g.Size)
}
