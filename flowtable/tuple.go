package flowtable

import (
	"encoding/binary"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// Reason says what was decided for a packet.
type Reason = packet.Reason

// Mono is a point in time in nanoseconds since boot.
type Mono = clock.Mono

// Addr is an IPv6 address, or an IPv4 address in its IPv4-mapped form.
type Addr = packet.Addr

// Direction says which side of a flow a packet comes from.
type Direction uint8

// The directions. The zero Direction is none.
const (
	Outbound Direction = 1 // from the task
	Inbound  Direction = 2 // from the subnet side
)

// String implements fmt.Stringer.
func (d Direction) String() string {
	switch d {
	case Outbound:
		return "outbound"
	case Inbound:
		return "inbound"
	}
	return "none"
}

// other returns the opposite direction. d must be Outbound or Inbound.
func (d Direction) other() Direction { return Outbound + Inbound - d }

// side is the index of d in arrays of two.
func (d Direction) side() int { return int(d-1) & 1 }

// Tuple names one direction of a flow as it is seen in a packet. For ICMP echo
// the identifier is a port: see packet.Parsed. Tuples are comparable.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Proto            uint8 // IANA protocol number
	_                [3]byte
}

// TupleOf returns the tuple of a parsed packet whose Transport is set.
func TupleOf(p *packet.Parsed) Tuple {
	return Tuple{Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort, Proto: p.Proto}
}

// Mirror returns the tuple of an answer to k where nothing is translated.
func (k Tuple) Mirror() Tuple {
	return Tuple{Src: k.Dst, Dst: k.Src, SrcPort: k.DstPort, DstPort: k.SrcPort, Proto: k.Proto}
}

// Ref names an entry and the flow that was in it: an index and a generation. A
// Ref whose flow was removed finds nothing, even when the entry is used again
// (the generation wraps after 16 million uses of one entry). The zero Ref is
// none.
type Ref uint64

func makeRef(i uint32, m meta) Ref { return Ref(m.gen())<<32 | Ref(i) }
func (r Ref) index() uint32        { return uint32(r) }
func (r Ref) gen() uint32          { return uint32(r >> 32) }

// Flow is what Insert is told about a new flow.
type Flow struct {
	// Inner is the tuple of the task's packets, before translation.
	Inner Tuple
	// Outside and OutsidePort are what the source becomes on the subnet side:
	// Inner.Src and Inner.SrcPort where nothing is translated.
	Outside     Addr
	OutsidePort uint16
	Task        uint32 // the task that owns the flow
	Rule        uint32 // the rule that allowed it
	Policy      uint32 // the version of the policy that allowed it
}

// Reply returns the tuple of the packets that answer f, as they come from the
// subnet side.
func (f *Flow) Reply() Tuple {
	return Tuple{Src: f.Inner.Dst, Dst: f.Outside, SrcPort: f.Inner.DstPort, DstPort: f.OutsidePort, Proto: f.Inner.Proto}
}

// key is a Tuple in words, for hashing and comparing.
type key struct {
	a, b, c, d uint64 // source, destination
	p          uint64 // source port, destination port, protocol
}

func keyOf(k *Tuple) (w key) {
	w.set(k)
	return w
}

// set fills w in place: a copy of it just after would wait for these stores.
func (w *key) set(k *Tuple) {
	w.a = binary.LittleEndian.Uint64(k.Src[0:8])
	w.b = binary.LittleEndian.Uint64(k.Src[8:16])
	w.c = binary.LittleEndian.Uint64(k.Dst[0:8])
	w.d = binary.LittleEndian.Uint64(k.Dst[8:16])
	w.p = uint64(k.SrcPort) | uint64(k.DstPort)<<16 | uint64(k.Proto)<<32
}

// addrOf is the inverse of what keyOf does to one address.
func addrOf(hi, lo uint64) (a Addr) {
	binary.LittleEndian.PutUint64(a[0:8], hi)
	binary.LittleEndian.PutUint64(a[8:16], lo)
	return a
}
