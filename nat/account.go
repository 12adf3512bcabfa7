package nat

import (
	"encoding/binary"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// Released gives back the port and the counts of a flow that has left the
// table. Wire it to flowtable.Config.OnRemove: a port is taken until then, the
// hold after a TCP connection's end included. Flows behind other outside
// addresses are not looked at, nor is anything with a nil Mapper, so that
// OnRemove may be set before the Mapper is made.
func (m *Mapper) Released(e *flowtable.Entry) {
	if m == nil {
		return
	}
	f, i, ok := m.ours(e)
	if !ok {
		return
	}
	if m.pinned(&f) {
		socket := m.socketKey(&f.Inner)
		c := m.pinnedClaim(&f, socket)
		c.walk.at = i
		m.pin(socket).release(socket, &c, m.shard(c.dest))
		return
	}
	c := m.sharedClaim(&f, 0)
	c.walk.at = i
	m.shard(c.dest).release(&c)
}

// restore counts the flows that are in the table.
func (m *Mapper) restore() {
	m.table.All(func(_ flowtable.Ref, e *flowtable.Entry) bool {
		f, i, ok := m.ours(e)
		if !ok {
			return true
		}
		if m.pinned(&f) {
			socket := m.socketKey(&f.Inner)
			c := m.pinnedClaim(&f, socket)
			c.walk.at = i
			m.pin(socket).restore(socket, &c, m.shard(c.dest), m.reserved)
			return true
		}
		c := m.sharedClaim(&f, 0)
		c.walk.at = i
		m.shard(c.dest).restore(&c, m.reserved)
		return true
	})
}

// ours returns the flow of an entry and the index of its port, if it is behind
// one of our addresses.
func (m *Mapper) ours(e *flowtable.Entry) (f flowtable.Flow, i uint32, ok bool) {
	outside, port := e.Outside()
	if port < FirstPort || outside == (packet.Addr{}) || outside != m.v4 && outside != m.v6 {
		return flowtable.Flow{}, 0, false
	}
	return flowtable.Flow{Inner: e.Inner(), Outside: outside, Task: e.Task()}, uint32(port - FirstPort), true
}

// pinned reports whether f's socket has one port for all destinations.
func (m *Mapper) pinned(f *flowtable.Flow) bool {
	return m.udp == Independent && f.Inner.Proto == protoUDP
}

// admitPinned inserts f with the one port of its socket.
func (m *Mapper) admitPinned(f *flowtable.Flow, s *flowtable.Segment, now clock.Mono) (flowtable.Ref, packet.Reason) {
	socket := m.socketKey(&f.Inner)
	c := m.pinnedClaim(f, socket)
	pin, sh := m.pin(socket), m.shard(c.dest)
	if r := pin.hold(socket, &c, sh, m.limits.Load(), m.reserved); r != packet.OK {
		return 0, r
	}
	f.OutsidePort = c.port()
	ref, r := m.table.Insert(f, s, now)
	if r != packet.OK {
		pin.release(socket, &c, sh)
		if r == packet.TupleTaken {
			// By a flow from before the mapping was Independent. The socket
			// must not have another port, so this destination has to wait.
			return 0, packet.PortsExhausted
		}
	}
	return ref, r
}

// socketKey is the keyed function of an inner socket that its port comes from.
func (m *Mapper) socketKey(t *flowtable.Tuple) uint64 {
	return endKey(m.socket, &t.Src, t.SrcPort, t.Proto)
}

// sharedClaim is the claim of a flow on a port towards its destination.
func (m *Mapper) sharedClaim(f *flowtable.Flow, socket uint64) claim {
	dest := endKey(m.dest, &f.Inner.Dst, f.Inner.DstPort, f.Inner.Proto)
	return claim{dest: dest, share: shareKey(dest, f.Task), heat: hotFrom, walk: newWalk(socket, dest)}
}

// pinnedClaim is the claim of a socket on a port for all destinations: the
// outside address stands for them, which no flow goes to. Its port set is kept
// from the first socket on, because the table cannot be asked: it knows ports
// only together with a destination.
func (m *Mapper) pinnedClaim(f *flowtable.Flow, socket uint64) claim {
	dest := endKey(m.dest, &f.Outside, 0, f.Inner.Proto)
	return claim{dest: dest, share: shareKey(dest, f.Task), heat: 1, walk: newWalk(socket, dest)}
}

// endKey is the keyed function of one end of a flow.
func endKey(k sipKey, a *packet.Addr, port uint16, proto uint8) uint64 {
	var b [19]byte
	copy(b[:], a[:])
	binary.BigEndian.PutUint16(b[16:], port)
	b[18] = proto
	return k.sum(b[:])
}

func (m *Mapper) shard(dest uint64) *shard { return &m.shards[dest>>(64-shardBits)] }
func (m *Mapper) pin(socket uint64) *pins  { return &m.pins[socket>>(64-shardBits)] }

// Stats are the levels of a Mapper.
type Stats struct {
	Pool         int // ports that may be given out, per destination
	Destinations int // destinations (protocol, address, port) with flows
	Busiest      int // flows of the destination with the most
	Hot          int // destinations with a set of taken ports, of 8 KB each
	Pinned       int // UDP sockets with one port for all destinations
	Bytes        int // memory that counts and sets take
}

// Stats returns the levels. It locks each part in turn, never all, and takes
// time in proportion to the number of destinations: for metrics, not for the
// packet path.
func (m *Mapper) Stats() Stats {
	st := Stats{Pool: m.limits.Load().pool}
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		st.Destinations += s.dests.used
		st.Bytes += slotBytes * (len(s.dests.slots) + len(s.shares.slots))
		for j := range s.dests.slots {
			st.Busiest = max(st.Busiest, int(s.dests.slots[j].n))
		}
		for _, set := range s.hot {
			if set != nil {
				st.Hot++
			}
		}
		if s.spare != nil {
			st.Bytes += setBytes
		}
		s.mu.Unlock()
		p := &m.pins[i]
		p.mu.Lock()
		st.Pinned += p.sockets.used
		st.Bytes += slotBytes * len(p.sockets.slots)
		p.mu.Unlock()
	}
	st.Bytes += setBytes * st.Hot
	return st
}

// Ports returns how many outside ports are taken towards one destination, of
// Stats.Pool, held ones included, and how many of them by one task. The port is
// 0 for echo requests.
func (m *Mapper) Ports(proto uint8, dst packet.Addr, port uint16, task uint32) (taken, byTask int) {
	dest := endKey(m.dest, &dst, port, proto)
	s := m.shard(dest)
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.dests.count(dest)), int(s.shares.count(shareKey(dest, task)))
}
