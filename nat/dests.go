package nat

import (
	"sync"

	"github.com/fe919326/spillway/internal/packet"
)

// numShards is the number of locks over the destinations: the first bits of a
// key name its shard, the last ones its place there.
const (
	numShards = 1 << shardBits
	shardBits = 6
)

// hotFrom is the number of flows to one destination from which on its taken
// ports are kept in a portSet: below, a chosen port is taken with less than 1 %
// probability, and the flow table is asked by trying. The set is given back
// below half of it. It has 8 KB, so at most 32 bytes per flow.
const hotFrom = 512

// shard counts the flows of the destinations whose keys begin with its number.
//
// The counts are exact: they decide who is refused. The port sets are hints
// that save asking the flow table, which has the last word. Flows from before
// the destination was hot are not in its set until someone hits them.
type shard struct {
	mu sync.Mutex
	// all below is guarded by mu

	// dests counts flows by destination. A slot's tag is the index of the
	// destination's portSet in hot, plus one; 0 while it has none.
	dests tally
	// shares counts flows by destination and task.
	shares tally
	hot    []*portSet // nil entries are free
	spare  *portSet   // the last one given back: a destination at the brink makes no garbage
}

// claim is one flow's place among the flows to one destination. The path of
// an admission fills walk; the end of a flow needs only the port in it.
type claim struct {
	dest  uint64 // keyed hash of protocol, destination address and port
	share uint64 // the same with the task
	// heat is the number of flows from which on the destination has a portSet.
	heat uint32
	// walk stands at the chosen port.
	walk walk
	// tries counts the ports chosen for this claim.
	tries int
}

// port returns the outside port that c stands at.
func (c *claim) port() uint16 { return FirstPort + uint16(c.walk.at) }

// shareKey returns the key of one task's share of a destination.
func shareKey(dest uint64, task uint32) uint64 {
	return mix(dest + (uint64(task)+1)*0x9e3779b97f4a7c15)
}

// limits are Limits with the defaults filled in.
type limits struct{ perTask, minimum, reserve, pool int }

// verdict says whether a task with mine of the used ports of a destination may
// have one more.
func (l *limits) verdict(used, mine int) packet.Reason {
	switch {
	case mine >= l.perTask:
		return packet.TaskPortLimit
	case used >= l.pool, used >= l.pool-l.reserve && mine >= l.minimum:
		// The reserve is for tasks that are below their minimum.
		return packet.PortsExhausted
	}
	return packet.OK
}

// reserve counts one more flow for c, or says why not, and chooses its first
// port. It is not found if the set says that all are taken.
func (s *shard) reserve(c *claim, l *limits, reserved *portSet) (found bool, r packet.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := l.verdict(int(s.dests.count(c.dest)), int(s.shares.count(c.share))); r != packet.OK {
		return false, r
	}
	set := s.countLocked(c, reserved)
	return c.choose(set, reserved), packet.OK
}

// next chooses another port for c, whose last one turned out to be taken.
func (s *shard) next(c *claim, reserved *portSet) (found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setLocked(s.dests.find(c.dest))
	if set != nil {
		set.set(c.walk.at)
	}
	c.walk.step()
	return c.choose(set, reserved)
}

// choose moves c to a port that is not known to be taken and takes it in set,
// which may be nil. c may stand on such a port already.
func (c *claim) choose(set, reserved *portSet) (found bool) {
	if c.tries++; c.tries > portCount {
		return false
	}
	if set == nil {
		_, found = reserved.choose(&c.walk)
		return found
	}
	i, found := set.choose(&c.walk)
	if found {
		set.set(i)
	}
	return found
}

// restore counts a flow that is in the table already, at the port where c
// stands.
func (s *shard) restore(c *claim, reserved *portSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if set := s.countLocked(c, reserved); set != nil {
		set.set(c.walk.at)
	}
}

// mark takes the port where c stands in the destination's set.
func (s *shard) mark(c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if set := s.setLocked(s.dests.find(c.dest)); set != nil {
		set.set(c.walk.at)
	}
}

// release gives back what reserve or restore counted, and the port.
func (s *shard) release(c *claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shares.sub(c.share)
	d := s.dests.find(c.dest)
	if d == nil {
		return
	}
	if set := s.setLocked(d); set != nil {
		set.clear(c.walk.at)
		if left := d.n - 1; left == 0 || left < c.heat/2 {
			s.spare, s.hot[d.tag-1], d.tag = set, nil, 0
		}
	}
	s.dests.sub(c.dest)
}

// countLocked counts the flow of c and returns the destination's set, which it
// makes when there are enough flows for one. Otherwise the set is nil.
func (s *shard) countLocked(c *claim, reserved *portSet) *portSet {
	s.shares.add(c.share)
	d := s.dests.add(c.dest)
	if d.n < c.heat || d.tag != 0 {
		return s.setLocked(d)
	}
	set := s.spare
	s.spare = nil
	if set == nil {
		set = new(portSet)
	}
	*set = *reserved
	i := 0
	for i < len(s.hot) && s.hot[i] != nil {
		i++
	}
	if i == len(s.hot) {
		s.hot = append(s.hot, nil)
	}
	s.hot[i], d.tag = set, uint32(i+1)
	return set
}

// setLocked returns the port set of a destination, nil if it has none or the
// destination is nil.
func (s *shard) setLocked(d *slot) *portSet {
	if d == nil || d.tag == 0 {
		return nil
	}
	return s.hot[d.tag-1]
}
