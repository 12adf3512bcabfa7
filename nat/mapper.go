package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// Mapping is how outside ports are given to the sockets of one protocol.
type Mapping uint8

const (
	// PerDestination prefers the socket's own port for every destination and
	// gives another one where that is taken.
	PerDestination Mapping = iota
	// Independent gives a socket one port for all destinations, strictly
	// (RFC 4787 REQ-1), and that port to no other socket: all sockets of all
	// tasks behind one address share one range.
	Independent
)

// Config says what a Mapper works with.
type Config struct {
	// Table holds the flows. Required. Its OnRemove must call Released.
	Table *flowtable.Table
	// Secret keys the choice of ports. Required: all zeros are refused. It
	// belongs to the outside address: whoever takes the address over uses the
	// same secret and gets the same ports.
	Secret [32]byte
	// V4 and V6 are the outside addresses. The zero address means that there is
	// no way out for that family; at least one is required.
	V4, V6 netip.Addr
	// Reserved are ports that are never given out, such as what the machine
	// itself listens on at these addresses. Ports below FirstPort never are.
	Reserved []PortRange
	// UDP is the mapping of UDP sockets. Default PerDestination.
	UDP Mapping
	// Limits share the ports out between tasks.
	Limits Limits
}

// Limits share the ports of one outside address and one destination (protocol,
// address, port) out between tasks. With the Independent mapping all UDP
// sockets count as if they went to one destination.
type Limits struct {
	// PerTask is how many ports one task may have. Default and at most: all of
	// them but the reserve.
	PerTask int
	// Minimum is how many ports a task can count on even when others have
	// taken all but the reserve. Default 256; -1 means none.
	Minimum int
	// Reserve is how many ports are kept for tasks that are below their
	// minimum. Default 3,072, at most half of the ports; -1 means none.
	Reserve int
}

// The defaults of Limits.
const (
	DefaultMinimum = 256
	DefaultReserve = 3072
)

// Meta is what the caller knows about a new flow.
type Meta struct {
	Task   uint32 // who it belongs to: whose share of ports it counts in
	Rule   uint32 // the policy rule that allows it
	Policy uint32 // the version of the policy
}

// Mapper gives new flows their outside address and port. It is safe for
// concurrent use.
type Mapper struct {
	// immutable after New
	table    *flowtable.Table
	v4, v6   packet.Addr // zero if there is none
	reserved *portSet
	socket   sipKey // keys the port of an inner socket
	dest     sipKey // keys the records of destinations
	udp      Mapping

	limits atomic.Pointer[limits]
	shards [numShards]shard
	pins   [numShards]pins
}

// New checks c and returns a Mapper that has counted the flows in c.Table
// already, so that a table that was reopened from a file goes on as it was. No
// flow may be inserted or removed meanwhile.
func New(c Config) (*Mapper, error) {
	if c.Table == nil {
		return nil, errors.New("nat: Table is required")
	}
	if c.Secret == [32]byte{} {
		return nil, errors.New("nat: Secret is required: 32 random bytes")
	}
	m := &Mapper{
		table:    c.Table,
		reserved: new(portSet),
		socket:   newSipKey(c.Secret[:16]),
		dest:     newSipKey(c.Secret[16:]),
		udp:      c.UDP,
	}
	if !c.V4.IsValid() && !c.V6.IsValid() {
		return nil, errors.New("nat: an outside address is required: V4, V6 or both")
	}
	if c.V4.IsValid() {
		if !c.V4.Unmap().Is4() {
			return nil, fmt.Errorf("nat: V4 %v is not an IPv4 address", c.V4)
		}
		m.v4 = packet.AddrFrom(c.V4)
	}
	if c.V6.IsValid() {
		if c.V6.Unmap().Is4() || c.V6.Zone() != "" {
			return nil, fmt.Errorf("nat: V6 %v is not an IPv6 address without a zone", c.V6)
		}
		m.v6 = packet.AddrFrom(c.V6)
	}
	if c.UDP > Independent {
		return nil, fmt.Errorf("nat: unknown mapping %d", c.UDP)
	}
	for _, r := range c.Reserved {
		if r.First > r.Last {
			return nil, fmt.Errorf("nat: reserved ports %v: the first is above the last", r)
		}
		for p := max(int(r.First), FirstPort); p <= int(r.Last); p++ {
			m.reserved.set(uint32(p - FirstPort))
		}
	}
	if err := m.SetLimits(c.Limits); err != nil {
		return nil, err
	}
	m.restore()
	return m, nil
}

// SetLimits replaces the limits, at once and for new flows only: nobody who is
// over a new limit loses anything.
func (m *Mapper) SetLimits(l Limits) error {
	pool := portCount - m.reserved.n
	n := &limits{perTask: l.PerTask, minimum: l.Minimum, reserve: l.Reserve, pool: pool}
	switch {
	case n.reserve == 0:
		n.reserve = min(DefaultReserve, pool/2)
	case n.reserve < 0:
		n.reserve = 0
	case n.reserve > pool/2:
		return fmt.Errorf("nat: Reserve %d is more than half of the %d ports", n.reserve, pool)
	}
	switch {
	case n.minimum == 0:
		n.minimum = DefaultMinimum
	case n.minimum < 0:
		n.minimum = 0
	}
	switch most := pool - n.reserve; {
	case n.perTask < 0:
		return fmt.Errorf("nat: PerTask %d is negative", n.perTask)
	case n.perTask == 0, n.perTask > most:
		n.perTask = most
	}
	if n.minimum > n.perTask {
		if l.Minimum != 0 {
			return fmt.Errorf("nat: Minimum %d is more than PerTask %d", n.minimum, n.perTask)
		}
		n.minimum = n.perTask
	}
	if pool == 0 {
		return errors.New("nat: all ports are reserved")
	}
	m.limits.Store(n)
	return nil
}

// Outside returns the outside address for an IP version, 4 or 6: the zero
// address if there is none.
func (m *Mapper) Outside(version uint8) packet.Addr {
	if version == 4 {
		return m.v4
	}
	return m.v6
}

// Admit gives the new flow that p starts an outside port and inserts it into
// the table. p is as the task sent it, allowed by the policy, and s was made
// of it by flowtable.SegmentOf. The packet is not changed.
//
// It returns OK with the flow, or FlowExists with the flow that another
// goroutine inserted for the same packet's tuple meanwhile: either is the flow
// to go on with. Otherwise the flow is refused and nothing has changed:
// TaskPortLimit (the task has its share of ports for this destination),
// PortsExhausted (there is none left for it), the refusals of the table
// (TableFull, TaskFlowLimit and others), NoRoute (no outside address of this
// family), Hairpin (p goes to an outside address), UnsupportedProtocol (not TCP,
// UDP or an echo request), FragmentRefused (no ports in p) or TupleTaken (the
// inner address had another task, whose flow with this tuple is still there).
func (m *Mapper) Admit(p *packet.Parsed, s *flowtable.Segment, meta Meta, now clock.Mono) (flowtable.Ref, packet.Reason) {
	if !p.Transport {
		return 0, packet.FragmentRefused
	}
	if p.Proto != protoTCP && p.Proto != protoUDP && !p.IsEchoRequest() {
		return 0, packet.UnsupportedProtocol
	}
	outside := m.Outside(p.Version)
	if outside == (packet.Addr{}) {
		return 0, packet.NoRoute
	}
	if p.Dst == outside {
		return 0, packet.Hairpin
	}
	f := flowtable.Flow{
		Inner:   flowtable.TupleOf(p),
		Outside: outside,
		Task:    meta.Task,
		Rule:    meta.Rule,
		Policy:  meta.Policy,
	}
	ref, r := m.admit(&f, s, now)
	if r == packet.FlowExists {
		var other flowtable.Flow
		if m.table.Load(ref, &other) && other.Task != f.Task {
			return 0, packet.TupleTaken
		}
	}
	return ref, r
}

func (m *Mapper) admit(f *flowtable.Flow, s *flowtable.Segment, now clock.Mono) (flowtable.Ref, packet.Reason) {
	if m.pinned(f) {
		return m.admitPinned(f, s, now)
	}
	return m.admitShared(f, s, now)
}

// admitShared inserts f with its socket's own port or, where that is taken
// towards f's destination, with another.
func (m *Mapper) admitShared(f *flowtable.Flow, s *flowtable.Segment, now clock.Mono) (flowtable.Ref, packet.Reason) {
	c := m.sharedClaim(f, m.socketKey(&f.Inner))
	sh := m.shard(c.dest)
	again, found := m.former(f, &c), true
	if again {
		// One flow for another: no limit can be in the way.
		sh.restore(&c, m.reserved)
	} else {
		var r packet.Reason
		if found, r = sh.reserve(&c, m.limits.Load(), m.reserved); r != packet.OK {
			return 0, r
		}
	}
	for {
		if !found && !m.search(f, &c) {
			// The counts say there is room, the table says there is not: it
			// holds flows to this destination that are not ours.
			sh.release(&c)
			return 0, packet.PortsExhausted
		}
		f.OutsidePort = c.port()
		ref, r := m.table.Insert(f, s, now)
		switch r {
		case packet.OK:
			if again {
				sh.mark(&c) // the former flow's end has given the port back
			}
			return ref, r
		case packet.TupleTaken:
			found = sh.next(&c, m.reserved)
		default: // FlowExists, or refused
			sh.release(&c)
			return ref, r
		}
	}
}

// former moves c to the port of the flow that f's socket has towards the same
// destination already, and reports whether there is one. Such a flow is over,
// or else Admit would not have been called: a TCP connection in TIME_WAIT that
// the socket opens again, or one that expired and was not swept yet. Insert
// takes it away, and the port stays.
func (m *Mapper) former(f *flowtable.Flow, c *claim) bool {
	ref, dir := m.table.Lookup(&f.Inner)
	if ref == 0 || dir != flowtable.Outbound {
		return false
	}
	var old flowtable.Flow
	if !m.table.Load(ref, &old) || old.Outside != f.Outside || old.OutsidePort < FirstPort {
		return false
	}
	i := uint32(old.OutsidePort - FirstPort)
	if m.reserved.has(i) {
		return false
	}
	c.walk.at = i
	return true
}

// search moves c to a port that the table says is free: for when the port set
// says that none is, which is wrong if a flow ended at the very moment another
// found its port taken. It is not found if the table agrees or c went round.
func (m *Mapper) search(f *flowtable.Flow, c *claim) (found bool) {
	k := f.Reply()
	for ; c.tries < 2*portCount; c.tries++ {
		c.walk.step()
		if m.reserved.has(c.walk.at) {
			continue
		}
		k.DstPort = c.port()
		if ref, _ := m.table.Lookup(&k); ref == 0 {
			return true
		}
	}
	return false
}
