package flowtable

import (
	"runtime"
	"sync/atomic"
	"time"
)

// tick is the unit of expiry times.
const tick = 250 * time.Millisecond

func tickOf(m Mono) uint32 { return uint32(m / Mono(tick)) }

// tickAfter is the first tick at or after m+d: nothing expires early.
func tickAfter(m Mono, d time.Duration) uint32 {
	return uint32((m + Mono(d) + Mono(tick) - 1) / Mono(tick))
}

func monoOf(t uint32) Mono { return Mono(t) * Mono(tick) }

// hot is the part of an entry that packets touch: one cache line for Lookup,
// one more for Observe.
type hot struct {
	// Line 1: who talks to whom. Constant from the store of meta to the end of
	// the flow, read without a lock.
	meta uint64 // a meta, atomic
	// The task's address, the other end, what the task's address becomes: two
	// words each. The tuple of a task's packet starts at 0, that of an answer
	// at 2.
	addr [6]uint64
	// inner port, remote port, outside port (16 bits each), protocol (8), sum
	// of the identity (8).
	ports uint64

	// Line 2: how it goes. Guarded by busy.
	win    [2]seqs   // TCP sequence space, by side
	scale  [2]uint8  // TCP window scale and window bits, by side
	seen   [2]uint8  // all TCP flags seen, by side
	expire uint32    // tick at which the flow ends; atomic store, read without the lock
	lo     [4]uint32 // counters, low parts: packets by side, bytes by side
	hi     [4]uint16 // counters, bits 32-47
}

// cold is the rest of an entry.
type cold struct {
	created  uint64 // Mono
	task     uint32
	rule     uint32 // atomic
	policy   uint32 // atomic
	last     uint32 // tick of the last packet that refreshed the flow; atomic
	pmtu     uint32 // path MTU learned for the flow, 0 if none; atomic
	next     uint32 // free list
	synSeq   uint32 // T11: the last SYN inside an established flow. Guarded by busy
	synWin   uint16
	synScale uint8 // window scale and bitScale
	_        uint8
	words    [3]atomic.Uint64
}

// Entry is the record of one flow. It lies in the table's memory: its methods
// are safe for concurrent use until the table is closed. When the flow is
// removed the entry rests for a while and then holds another flow, so an Entry
// is for the packet at hand; keep a Ref, not an Entry. Table.Load reads a
// flow's addresses with proof that it is still the same flow.
type Entry struct {
	hot
	cold
}

func (e *Entry) load() meta { return meta(atomic.LoadUint64(&e.meta)) }

// lock takes the entry if it holds a flow, living or leaving, and returns its
// meta without busy. The holder stores a meta to give it back.
func (e *Entry) lock() (meta, bool) {
	for i := 0; ; i++ {
		m := e.load()
		if m.phase() == phaseFree {
			return m, false
		}
		if m&metaBusy == 0 && atomic.CompareAndSwapUint64(&e.meta, uint64(m), uint64(m|metaBusy)) {
			return m, true
		}
		if i > 20 {
			runtime.Gosched() // the holder may have been preempted
		}
	}
}

// lockFlow is lock for one living flow only.
func (e *Entry) lockFlow(gen uint32) (meta, bool) {
	for i := 0; ; i++ {
		m := e.load()
		if !m.live() || m.gen() != gen {
			return m, false
		}
		if m&metaBusy == 0 && atomic.CompareAndSwapUint64(&e.meta, uint64(m), uint64(m|metaBusy)) {
			return m, true
		}
		if i > 20 {
			runtime.Gosched()
		}
	}
}

// unlock gives the entry back with a new meta.
func (e *Entry) unlock(m meta) { atomic.StoreUint64(&e.meta, uint64(m)) }

// Inner returns the tuple of the task's packets, before translation.
func (e *Entry) Inner() Tuple {
	p := atomic.LoadUint64(&e.ports)
	return Tuple{Src: e.InnerAddr(), Dst: e.RemoteAddr(), SrcPort: uint16(p), DstPort: uint16(p >> 16), Proto: uint8(p >> 48)}
}

// Reply returns the tuple of the packets that come back from the subnet side,
// before translation.
func (e *Entry) Reply() Tuple {
	p := atomic.LoadUint64(&e.ports)
	a, port := e.Outside()
	return Tuple{Src: e.RemoteAddr(), Dst: a, SrcPort: uint16(p >> 16), DstPort: port, Proto: uint8(p >> 48)}
}

// InnerAddr returns the task's address.
func (e *Entry) InnerAddr() Addr {
	return addrOf(atomic.LoadUint64(&e.addr[0]), atomic.LoadUint64(&e.addr[1]))
}

// RemoteAddr returns the address of the other end.
func (e *Entry) RemoteAddr() Addr {
	return addrOf(atomic.LoadUint64(&e.addr[2]), atomic.LoadUint64(&e.addr[3]))
}

// Outside returns what the task's address and port become on the subnet side.
func (e *Entry) Outside() (Addr, uint16) {
	return addrOf(atomic.LoadUint64(&e.addr[4]), atomic.LoadUint64(&e.addr[5])), uint16(atomic.LoadUint64(&e.ports) >> 32)
}

// Proto returns the IANA protocol number.
func (e *Entry) Proto() uint8 { return uint8(atomic.LoadUint64(&e.ports) >> 48) }

// Flow returns what Insert was told.
func (e *Entry) Flow() Flow {
	f := Flow{Inner: e.Inner(), Task: e.Task(), Rule: e.Rule(), Policy: e.Policy()}
	f.Outside, f.OutsidePort = e.Outside()
	return f
}

// Task returns the task that owns the flow.
func (e *Entry) Task() uint32 { return atomic.LoadUint32(&e.task) }

// Rule returns the rule that allowed the flow.
func (e *Entry) Rule() uint32 { return atomic.LoadUint32(&e.rule) }

// Policy returns the version of the policy that allowed the flow.
func (e *Entry) Policy() uint32 { return atomic.LoadUint32(&e.policy) }

// State returns the flow's state, in OnRemove the last one.
func (e *Entry) State() State { return e.load().state() }

// Closer returns the side that sent the first FIN, or 0.
func (e *Entry) Closer() Direction {
	switch f := e.load().flags(); {
	case f&flagInsideFirst != 0:
		return Outbound
	case f&flagOutsideFirst != 0:
		return Inbound
	}
	return 0
}

// Picked reports whether the flow was taken up mid-stream.
func (e *Entry) Picked() bool { return e.load().flags()&flagPicked != 0 }

// Created returns the time of the first packet.
func (e *Entry) Created() Mono { return Mono(atomic.LoadUint64(&e.created)) }

// Last returns the time of the last packet that refreshed the flow, to 250 ms.
func (e *Entry) Last() Mono { return max(monoOf(atomic.LoadUint32(&e.last)), e.Created()) }

// Expires returns the time at which the flow ends if no packet comes.
func (e *Entry) Expires() Mono { return monoOf(atomic.LoadUint32(&e.expire)) }

// Counters are what passed in each direction: packets as on the wire (a
// super-packet counts its segments) and IP bytes. They wrap at 2^48.
type Counters struct {
	OutPackets, InPackets uint64
	OutBytes, InBytes     uint64
}

// Counters returns what passed so far; zero if the flow is gone.
func (e *Entry) Counters() (c Counters) {
	m, ok := e.lock()
	if !ok {
		return c
	}
	c = Counters{OutPackets: e.count(0), InPackets: e.count(1), OutBytes: e.count(2), InBytes: e.count(3)}
	e.unlock(m)
	return c
}

func (e *Entry) count(i int) uint64 { return uint64(e.hi[i])<<32 | uint64(e.lo[i]) }

func (e *Entry) add(i int, n uint32) {
	e.lo[i] += n
	if e.lo[i] < n {
		e.hi[i]++
	}
}

// TCPFlags returns all TCP flags seen in direction d, or'ed.
func (e *Entry) TCPFlags(d Direction) uint8 {
	m, ok := e.lock()
	if !ok {
		return 0
	}
	f := e.seen[d.side()]
	e.unlock(m)
	return f
}

// InFlight returns the oldest sequence number sent in direction d that is not
// acknowledged, and the one after the last sent (RFC 5927: an ICMP error about
// anything else is not to be believed). ok is false if the flow is not TCP or
// one of the two is not known.
func (e *Entry) InFlight(d Direction) (una, nxt uint32, ok bool) {
	if e.Proto() != protoTCP {
		return 0, 0, false
	}
	m, ok := e.lock()
	if !ok {
		return 0, 0, false
	}
	snd, rcv := d.side(), d.other().side()
	nxt, una = e.win[snd].end, e.win[rcv].maxAck
	// In SynSent the other side's maxAck is this side's first number.
	known := e.win[snd].maxWin != 0 && (e.scale[rcv]&bitAck != 0 || m.state() == SynSent && d == Outbound)
	e.unlock(m)
	return una, nxt, known
}

// PMTU returns what SetPMTU stored last, 0 at first.
func (e *Entry) PMTU() uint32 { return atomic.LoadUint32(&e.pmtu) }

// SetPMTU stores the path MTU learned for the flow, in bytes.
func (e *Entry) SetPMTU(mtu uint32) { atomic.StoreUint32(&e.pmtu, mtu) }

// Words are three words for the owner of the table, such as what was already
// logged and what was already sent to a standby. They start at 0, and they
// survive with the flow.
func (e *Entry) Words() *[3]atomic.Uint64 { return &e.words }

// portsOf cuts the ports and protocol of a key out of e.ports: of the task's
// packets for side 0, of answers for side 1.
func portsOf(p uint64, side int) uint64 { return p>>(16*uint(side&1))&0xffffffff | p>>48&0xff<<32 }

// matches reports whether k is e's tuple of that side. It does not branch on
// the side, nor on anything in the entry before the end: packets of both
// directions come mixed, and a wrong guess costs as much as all of this.
func (e *Entry) matches(k *key, side int) bool {
	at := 2 * (side & 1)
	diff := portsOf(atomic.LoadUint64(&e.ports), side) ^ k.p
	diff |= atomic.LoadUint64(&e.addr[at]) ^ k.a
	diff |= atomic.LoadUint64(&e.addr[at+1]) ^ k.b
	diff |= atomic.LoadUint64(&e.addr[at+2]) ^ k.c
	diff |= atomic.LoadUint64(&e.addr[at+3]) ^ k.d
	return diff == 0
}

// keyAt returns e's tuple of that side. The entry must not be reused meanwhile.
func (e *Entry) keyAt(side int) key {
	a := func(i int) uint64 { return atomic.LoadUint64(&e.addr[2*side+i]) }
	return key{a(0), a(1), a(2), a(3), portsOf(atomic.LoadUint64(&e.ports), side)}
}
