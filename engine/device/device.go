// Package device is the first and the last hop of a packet: it reads packets
// from network interfaces into batches and writes batches to them.
//
// A TUN is a Linux TUN interface with the kernel's virtio-net header
// (IFF_VNET_HDR, linux/virtio_net.h), so that the kernel may hand over TCP and
// UDP super-packets of up to 64 KiB and take them back. A Group serves many
// TUNs with one poller. NewPipe makes a pair of links in memory, for tests and
// for programs that have no interface.
//
// What comes from an interface is hostile: a virtio-net header that does not
// fit its packet makes the packet a counted drop (packet.BadOffload), never a
// panic, and an interface that fails or disappears takes only itself away.
//
// What goes to an interface is merged where that changes nothing for the
// receiver: consecutive segments of a TCP flow and datagrams of a UDP flow
// become one super-packet that the kernel cuts again into the same packets
// (bit for bit, but for the identification of IPv4 packets with DF set, which
// has no meaning: RFC 6864 section 4). A packet whose checksum is wrong is
// never merged, so that it stays wrong on the wire.
package device

import (
	"errors"

	"github.com/fe919326/spillway/internal/packet"
)

// Batch is the memory that packets travel in.
type Batch = packet.Batch

// Reason says why a packet was dropped.
type Reason = packet.Reason

// NewBatch returns an empty batch for a Link's Read and Write.
func NewBatch() *Batch { return packet.NewBatch() }

// A Link is where packets come from and go to: a Group of interfaces or one
// end of a pipe. Every packet names its interface in Packet.Port.
type Link interface {
	// Read empties b, blocks until there is at least one packet, and fills b
	// with what is there: up to a full batch, from several ports in turn. It
	// returns os.ErrClosed once the link is closed and no other error. One
	// goroutine reads at a time; others wait.
	Read(b *Batch) error
	// Write sends every packet of b that was not dropped to the port that
	// Packet.Port names. It never blocks: what cannot be sent is dropped and
	// counted. It does not keep or change b. It is safe for concurrent use.
	Write(b *Batch)
	// Close ends Read and every later Write. It is idempotent.
	Close() error
}

// Errors that callers tell apart with errors.Is.
var (
	// ErrPortTaken says that a group already has a port of that number.
	ErrPortTaken = errors.New("device: port number in use")
	// ErrNoPort says that a group has no port of that number.
	ErrNoPort = errors.New("device: no such port")
	// ErrNoTUN says that this machine or container offers no /dev/net/tun.
	ErrNoTUN = errors.New("device: no TUN driver")
	// ErrPermission says that CAP_NET_ADMIN is missing.
	ErrPermission = errors.New("device: not permitted")
	// ErrBusy says that another process, or another open, holds the interface.
	ErrBusy = errors.New("device: interface in use")
	// ErrNotTUN says that an interface or a descriptor is not a usable TUN.
	ErrNotTUN = errors.New("device: not a usable TUN")
)

// Config describes a Group. The zero Config is usable.
type Config struct {
	// Quantum is the number of packets that a port may give in its turn while
	// other ports have packets too, in 1..MaxBatch. 0 means 32. A port's turn
	// also ends after 64 KiB.
	Quantum int
	// OnPortDown is called once for a port whose interface is gone or broken,
	// after the group has given it up and closed it; err says why. nil means
	// nobody is told. It runs on the goroutine that noticed, in Read or in
	// Write: it must not block and not call Close; it may call Add and Remove.
	OnPortDown func(port uint32, err error)
}

// Persistence says whether an interface outlives the process.
type Persistence uint8

// The persistences.
const (
	// Ephemeral interfaces disappear with their last descriptor.
	Ephemeral Persistence = iota
	// Persistent interfaces stay, with addresses and routes, until SetPersist
	// or netlink removes them (TUNSETPERSIST).
	Persistent
)

// Offload says which super-packets an interface may exchange with us.
type Offload uint8

// The offloads.
const (
	// OffloadAll takes everything the kernel has: checksums, TCP over IPv4 and
	// IPv6, and UDP where the kernel knows it (6.2 and later).
	OffloadAll Offload = iota
	// OffloadTCP leaves out UDP: for kernels whose UDP segmentation is broken.
	OffloadTCP
	// OffloadNone exchanges only single packets with complete checksums.
	OffloadNone
)

// TUNConfig describes a TUN interface for OpenTUN.
type TUNConfig struct {
	// Name is the interface name, 1 to 15 bytes. Required, but for a name with
	// "%d" in it the kernel chooses the number: TUN.Name tells it.
	Name string
	// Persistence is Ephemeral unless said.
	Persistence Persistence
	// Offload is OffloadAll unless said.
	Offload Offload
	// Owner and Group are the user and group that may open the interface
	// without CAP_NET_ADMIN (TUNSETOWNER, TUNSETGROUP). nil means nobody.
	Owner, Group *uint32
}

// PortStats counts what one port did since it was added. Packets are reads and
// writes as the kernel sees them, so a super-packet is one; Segments are the
// packets on the wire.
type PortStats struct {
	ReadPackets, ReadSegments, ReadBytes    uint64
	WritePackets, WriteSegments, WriteBytes uint64
	// Merged is the number of packets that were written as part of a
	// super-packet that we made.
	Merged uint64
	// Drops counts the packets that were not delivered, by reason: BadOffload
	// and DeviceError on reading; DeviceError, TooBig and BadOffload on writing.
	Drops [packet.NumReasons]uint64
	// OffloadFallbacks counts how often the kernel refused a super-packet and
	// the port went back to single packets for its kind.
	OffloadFallbacks uint64
}
