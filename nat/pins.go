package nat

import (
	"sync"

	"github.com/fe919326/spillway/internal/packet"
)

// pins gives each inner UDP socket one outside port for all destinations
// (endpoint-independent mapping, RFC 4787 REQ-1): the port belongs to that
// socket alone for as long as it has a flow.
//
// The sockets' ports are counted as if all of them went to one destination, so
// the same limits hold. Lock order: pins.mu, then shard.mu.
type pins struct {
	mu sync.Mutex
	// sockets counts flows by socket. A slot's tag is the index of the
	// socket's port. Guarded by mu.
	sockets tally
}

// hold counts one more flow of socket and moves c to the socket's port, which
// it chooses in s if this is the socket's first flow.
func (p *pins) hold(socket uint64, c *claim, s *shard, l *limits, reserved *portSet) packet.Reason {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.sockets.find(socket); k != nil {
		c.walk.at = k.tag
		p.sockets.add(socket)
		return packet.OK
	}
	found, r := s.reserve(c, l, reserved)
	if r != packet.OK {
		return r
	}
	if !found { // the set of a pinned destination is exact: cannot happen below the pool
		s.release(c)
		return packet.PortsExhausted
	}
	p.sockets.add(socket).tag = c.walk.at
	return packet.OK
}

// restore counts a flow that is in the table already, at the port where c
// stands. A flow that does not go with what was restored before it, because
// the table was filled under the other kind of mapping, is not counted.
func (p *pins) restore(socket uint64, c *claim, s *shard, reserved *portSet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.sockets.find(socket); k != nil {
		if k.tag == c.walk.at {
			p.sockets.add(socket)
		}
		return
	}
	if s.taken(c) {
		return
	}
	s.restore(c, reserved)
	p.sockets.add(socket).tag = c.walk.at
}

// release gives back one flow of socket at the port where c stands, and the
// port with the last one.
func (p *pins) release(socket uint64, c *claim, s *shard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.sockets.find(socket)
	if k == nil || k.tag != c.walk.at {
		return
	}
	if p.sockets.sub(socket).n == 1 {
		s.release(c)
	}
}

// taken reports whether the port where c stands is known to be taken.
func (s *shard) taken(c *claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setLocked(s.dests.find(c.dest))
	return set != nil && set.has(c.walk.at)
}
