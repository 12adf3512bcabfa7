package packet

// Sizes of a batch. A batch is one piece of memory: packets are read into it
// one behind the other, each with room in front for the headers that the next
// hop prepends and room behind for an authentication tag.
const (
	// Headroom is the free space in front of every packet, in bytes: a
	// virtio-net header (12) or a WireGuard transport header (16) fits.
	Headroom = 32
	// Tailroom is the free space behind every packet, in bytes: a Poly1305
	// tag (16) and WireGuard's padding to 16 (15) fit.
	Tailroom = 32
	// MaxPacket is the largest packet, one GSO super-packet included: the
	// largest IPv4 total length (RFC 791 section 3.1).
	MaxPacket = 65535
	// MaxBatch is the largest number of packets in a batch.
	MaxBatch = 128
	// ArenaSize is the memory of one batch, in bytes. It holds at least two
	// largest super-packets, or MaxBatch packets of 1,500 bytes.
	ArenaSize = 256 << 10
)

// Packet is one IP packet, or one GSO super-packet, on its way through the
// engine. Its bytes belong to the batch that holds it.
type Packet struct {
	// Data starts at the IP header and ends with the last byte of the packet.
	// An empty Data means that the packet was dropped: every hop skips it.
	// borrowed: from the batch, until its Reset.
	Data []byte
	// GSO describes how the packet is to be cut into wire segments and
	// whether its transport checksum is complete. The zero GSO is an ordinary
	// packet with a complete checksum.
	GSO GSO
	// Port is the device port the packet came from or goes to.
	Port uint32
	// Peer is the tunnel peer the packet came from or goes to.
	Peer uint32
}

// Drop marks p as dropped.
func (p *Packet) Drop() { p.Data = nil }

// Batch is a fixed piece of memory with up to MaxBatch packets in it, owned by
// one worker at a time. It is not safe for concurrent use. Fill it with
// Reserve and Commit (or Append), empty it with Reset.
type Batch struct {
	// Packets are the packets in order of arrival. Hops may set Data to nil to
	// drop one; they never reorder or shorten the slice.
	Packets []Packet

	arena []byte
	used  int
}

// NewBatch returns an empty batch of ArenaSize bytes.
func NewBatch() *Batch {
	return &Batch{Packets: make([]Packet, 0, MaxBatch), arena: make([]byte, ArenaSize)}
}

// Reserve returns room for one packet of up to n bytes, with Headroom in
// front of it in the underlying array, or nil if the batch is full. The room
// is kept only by Commit.
func (b *Batch) Reserve(n int) []byte {
	off := b.used + Headroom
	if len(b.Packets) == cap(b.Packets) || off+n+Tailroom > len(b.arena) {
		return nil
	}
	return b.arena[off : off+n : off+n+Tailroom]
}

// ReserveFrom is Reserve with the headroom visible: it returns the slice that
// starts front bytes (at most Headroom) before the packet. A device reads its
// virtio-net header and the packet with one system call into it.
func (b *Batch) ReserveFrom(front, n int) []byte {
	off := b.used + Headroom
	if front > Headroom || len(b.Packets) == cap(b.Packets) || off+n+Tailroom > len(b.arena) {
		return nil
	}
	return b.arena[off-front : off+n : off+n+Tailroom]
}

// Commit keeps the first n bytes of the last Reserve as a packet and returns
// it with all other fields zero. It panics if nothing of that size was
// reserved: that is a bug of the caller.
func (b *Batch) Commit(n int) *Packet {
	off := b.used + Headroom
	if n <= 0 || off+n+Tailroom > len(b.arena) || len(b.Packets) == cap(b.Packets) {
		panic("packet: Commit without Reserve")
	}
	b.Packets = append(b.Packets, Packet{Data: b.arena[off : off+n : off+n+Tailroom]})
	// Keep packets 8-byte aligned so that header views read aligned words.
	b.used = (off + n + Tailroom + 7) &^ 7
	return &b.Packets[len(b.Packets)-1]
}

// Append copies data into the batch as a new packet. It returns nil if there
// is no room.
func (b *Batch) Append(data []byte) *Packet {
	room := b.Reserve(len(data))
	if room == nil || len(data) == 0 {
		return nil
	}
	copy(room, data)
	return b.Commit(len(data))
}

// Reset empties b. Slices into it are no longer valid.
func (b *Batch) Reset() {
	clear(b.Packets)
	b.Packets = b.Packets[:0]
	b.used = 0
}

// Full reports whether b has no room for another packet of n bytes.
func (b *Batch) Full(n int) bool { return b.Reserve(n) == nil }

// Swap exchanges the contents of b and o, memory included: how a batch is
// handed on without a copy.
func (b *Batch) Swap(o *Batch) { *b, *o = *o, *b }
