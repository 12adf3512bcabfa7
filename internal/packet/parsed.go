package packet

// Protocol numbers (IANA) that the engine carries.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// TCP flags as in the header's 13th octet (RFC 9293 section 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Addr is an IPv6 address, or an IPv4 address in its IPv4-mapped form
// (RFC 4291 section 2.5.5.2), so that keys are comparable and hold no pointer.
type Addr = [16]byte

// Parsed is what Parse found in a packet: addresses, ports and offsets, no
// bytes of its own. A worker owns one and reuses it.
type Parsed struct {
	// Data is the packet, cut to the length its IP header tells.
	// borrowed: from the packet, until its batch is reset.
	Data []byte

	Src, Dst Addr // IPv4 as mapped addresses

	// SrcPort and DstPort are the transport ports. For an ICMP or ICMPv6 echo
	// request or reply SrcPort holds the identifier if it is a request, DstPort
	// if it is a reply, and the other is 0, so that a reply's tuple is the
	// mirror of its request's. Valid iff Transport.
	SrcPort, DstPort uint16

	Version uint8 // 4 or 6
	Proto   uint8 // upper-layer protocol, behind all extension headers
	TTL     uint8 // TTL or hop limit

	// L4 is the offset of the transport header, Payload that of what follows
	// it. Payload is valid iff Transport.
	L4, Payload uint16

	// Transport says that the transport header is in Data: true but for
	// fragments that are not the first.
	Transport bool

	// Fragment says that this is one fragment of a larger datagram (atomic
	// IPv6 fragments, RFC 6946, do not count). FragOff is in bytes.
	Fragment bool
	More     bool // more fragments follow
	FragOff  uint16
	FragID   uint32
	FragHdr  uint16 // offset of the IPv6 fragment header; 0 if none

	// TCP only, valid iff Proto is ProtoTCP and Transport.
	Flags    uint8
	Seq, Ack uint32
	Window   uint16

	// ICMP and ICMPv6 only, valid iff Transport.
	Type, Code uint8

	// GSO is the offload state of the packet that was parsed.
	GSO GSO
}
