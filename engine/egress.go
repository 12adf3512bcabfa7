package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/engine/policy"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/nat"
)

// egressView is what an egress's workers read: immutable, replaced as a
// whole.
type egressView struct {
	delegations []delegation          // sorted by first, never overlapping
	outside     map[packet.Addr]*slot // by outside address
	pools       []addrRange           // every inner address there is
	tunnel      Tunnel                // nil before Run
}

// addrRange is the addresses from first to last, both included.
type addrRange struct{ first, last packet.Addr }

func (r addrRange) contains(a packet.Addr) bool {
	return bytes.Compare(a[:], r.first[:]) >= 0 && bytes.Compare(a[:], r.last[:]) <= 0
}

// rangeOf returns the addresses of p, which must be valid.
func rangeOf(p netip.Prefix) addrRange {
	first := packet.AddrFrom(p.Masked().Addr())
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	last := first
	for i := bits; i < 128; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return addrRange{first, last}
}

// next returns the address behind a.
func next(a packet.Addr) packet.Addr {
	for i := len(a) - 1; i >= 0; i-- {
		a[i]++
		if a[i] != 0 {
			break
		}
	}
	return a
}

// delegation is an inner prefix as the workers need it.
type delegation struct {
	addrRange
	gateway packet.Addr // the endpoint's own address in it
	base    uint32      // task name of its first address
	peer    uint32      // the tunnel peer that may use it
	machine string
	slot    *slot
}

// delegation returns the inner prefix that a belongs to, or nil.
func (v *egressView) delegation(a packet.Addr) *delegation {
	i := sort.Search(len(v.delegations), func(i int) bool {
		return bytes.Compare(v.delegations[i].last[:], a[:]) >= 0
	})
	if i < len(v.delegations) && v.delegations[i].contains(a) {
		return &v.delegations[i]
	}
	return nil
}

// destination refuses what no policy may allow: other tasks (J3), the shared
// addresses themselves, and what belongs to the machine.
func (v *egressView) destination(a packet.Addr) Reason {
	if v.outside[a] != nil {
		return packet.Hairpin
	}
	for _, r := range v.pools {
		if r.contains(a) {
			return packet.TaskToTask
		}
	}
	return packet.OK
}

// task names the task behind inner address a in tables and limits. The IPv4
// and the IPv6 address of a task stand at the same place of paired prefixes,
// so that both give the same name.
func (d *delegation) task(a packet.Addr) uint32 {
	return d.base + low32(a) - low32(d.first)
}

func low32(a packet.Addr) uint32 { return binary.BigEndian.Uint32(a[12:]) }

// slotKey names one address of one endpoint.
type slotKey struct {
	endpoint string
	index    int
}

// slot is one address of one endpoint on this egress: its table, its
// translation, its policy.
type slot struct {
	// Immutable after it was made.
	key        slotKey
	path       string      // of the table; "" if in memory
	v4, v6     packet.Addr // zero where the family is not offered
	port       uint32      // link port of the subnet
	mtu        int
	table      *flowtable.Table
	mapper     *nat.Mapper
	limits     *limits
	looseUntil flowtable.Mono

	// Atomic: replaced by Apply, loaded by workers.
	policy   atomic.Pointer[policy.Set]
	endpoint atomic.Pointer[api.Endpoint]
	log      atomic.Pointer[flowlog.Endpoint] // nil without a flow log

	sampling sync.Mutex // orders samples of the same flow

	// open is held, shared, by whoever reads table outside Run's goroutines.
	// Nothing else is locked meanwhile.
	open   sync.RWMutex
	closed bool // guarded by open

	out, in flowCount
	drops   counters
}

func (s *slot) count(c *flowCount, p *packet.Parsed) {
	c.packets.Add(uint64(p.Segments()))
	c.bytes.Add(wireBytes(p))
}

// mss is the largest TCP payload of one packet through the tunnel (RFC 6691).
func (s *slot) mss(version uint8) uint16 {
	if version == 6 {
		return uint16(s.mtu - 60)
	}
	return uint16(s.mtu - 40)
}

// refuseAtEndpoint counts a refused packet of a task, writes it to the flow
// log and, where decision J5 says so, answers it.
func (w *worker) refuseAtEndpoint(s *slot, d *delegation, r Reason, now flowtable.Mono) {
	p := &w.parsed
	s.drops[r].Add(uint64(max(p.Segments(), 1)))
	if len(p.Data) == 0 {
		return
	}
	w.engine.logRefusal(s, p, flowtable.Outbound, r)
	a := answerTo(r, p)
	if a == silence || (s.endpoint.Load().Deny == "drop" && r == packet.DeniedByPolicy) ||
		!s.limits.answer(d.task(p.Src), now) {
		return
	}
	if out := w.reply(a, p, d.gateway, s.mtu); out != nil {
		out.Peer = d.peer
	}
}

// sortDelegations orders them for delegation.
func sortDelegations(ds []delegation) {
	slices.SortFunc(ds, func(a, b delegation) int { return bytes.Compare(a.first[:], b.first[:]) })
}
