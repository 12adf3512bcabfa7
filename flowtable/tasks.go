package flowtable

import (
	"sync"
	"sync/atomic"

	"github.com/fe919326/spillway/internal/packet"
)

// tasks counts flows per task, outside the map. Open counts again.
type tasks struct {
	// immutable
	maxFlows, maxHalf, maxHalfTotal int

	half   atomic.Int64 // half-open flows of all tasks
	shards [taskShards]taskShard
}

const taskShards = 64

type taskShard struct {
	mu   sync.Mutex
	of   map[uint32]*taskUse // guarded by mu
	idle []*taskUse          // guarded by mu: for the next task, so that churn does not allocate
	_    [64 - 8 - 8 - 24]byte
}

// taskUse is what one task uses. Guarded by its shard's mu.
type taskUse struct {
	flows, half int
	// order has the half-open flows, oldest first, and some that no longer are.
	order []Ref
	head  int
}

const maxIdleUses = 64

func (a *tasks) init(c *Config) {
	a.maxFlows, a.maxHalf, a.maxHalfTotal = c.MaxFlowsPerTask, c.MaxHalfOpenPerTask, c.MaxHalfOpen
	for i := range a.shards {
		a.shards[i].of = make(map[uint32]*taskUse)
	}
}

func (a *tasks) shard(task uint32) *taskShard {
	return &a.shards[task*0x9e3779b1>>26]
}

// useLocked returns the counts of task, made if missing. mu is held.
func (s *taskShard) useLocked(task uint32) *taskUse {
	u := s.of[task]
	if u == nil {
		if n := len(s.idle); n > 0 {
			u, s.idle = s.idle[n-1], s.idle[:n-1]
		} else {
			u = new(taskUse)
		}
		s.of[task] = u
	}
	return u
}

// admission is the answer of tasks.acquire.
type admission uint8

const (
	admitted      admission = iota
	overFlows               // the task is at its flow cap
	overHalf                // the task is at its cap of half-open flows
	overHalfTotal           // all tasks together are at theirs
)

func (a *tasks) acquire(task uint32, half bool) admission {
	s := a.shard(task)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.useLocked(task)
	switch {
	case u.flows >= a.maxFlows:
		return overFlows
	case !half:
	case u.half >= a.maxHalf:
		return overHalf
	default:
		if a.half.Add(1) > int64(a.maxHalfTotal) {
			a.half.Add(-1)
			s.dropIfIdleLocked(task, u)
			return overHalfTotal
		}
		u.half++
	}
	u.flows++
	return admitted
}

// adopt counts a flow that Open found, cap or not.
func (a *tasks) adopt(task uint32, half bool) {
	s := a.shard(task)
	s.mu.Lock()
	u := s.useLocked(task)
	u.flows++
	if half {
		u.half++
		a.half.Add(1)
	}
	s.mu.Unlock()
}

func (a *tasks) release(task uint32, half bool) {
	s := a.shard(task)
	s.mu.Lock()
	if u := s.of[task]; u != nil {
		u.flows--
		if half {
			u.half--
			a.half.Add(-1)
		}
		s.dropIfIdleLocked(task, u)
	}
	s.mu.Unlock()
}

func (s *taskShard) dropIfIdleLocked(task uint32, u *taskUse) {
	if u.flows > 0 {
		return
	}
	delete(s.of, task)
	if len(s.idle) < maxIdleUses {
		*u = taskUse{order: u.order[:0]}
		s.idle = append(s.idle, u)
	}
}

// opened tells that a flow of task is no longer half-open.
func (a *tasks) opened(task uint32) {
	s := a.shard(task)
	s.mu.Lock()
	if u := s.of[task]; u != nil {
		u.half--
		a.half.Add(-1)
	}
	s.mu.Unlock()
}

// queue remembers that r is half-open.
func (a *tasks) queue(task uint32, r Ref, isHalf func(Ref) bool) {
	s := a.shard(task)
	s.mu.Lock()
	if u := s.of[task]; u != nil {
		u.push(r, isHalf)
	}
	s.mu.Unlock()
}

// oldestHalf takes the oldest half-open flow of task out of the order.
func (a *tasks) oldestHalf(task uint32, isHalf func(Ref) bool) Ref {
	s := a.shard(task)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.of[task]
	if u == nil {
		return 0
	}
	for u.head < len(u.order) {
		r := u.order[u.head]
		u.head++
		if isHalf(r) {
			return r
		}
	}
	u.order, u.head = u.order[:0], 0
	return 0
}

// push appends r. What is no longer half-open leaves when the order is full,
// so that it holds at most about twice the task's half-open flows.
func (u *taskUse) push(r Ref, isHalf func(Ref) bool) {
	if len(u.order) == cap(u.order) {
		kept := u.order[:0]
		for _, o := range u.order[u.head:] {
			if isHalf(o) {
				kept = append(kept, o)
			}
		}
		u.head = 0
		if u.order = kept; len(kept) > cap(kept)/2 {
			grown := make([]Ref, len(kept), max(2*cap(kept), 16))
			copy(grown, kept)
			u.order = grown
		}
		if cap(u.order) == 0 {
			u.order = make([]Ref, 0, 16)
		}
	}
	u.order = append(u.order, r)
}

// count returns the flows of task and how many of them are half-open.
func (a *tasks) count(task uint32) (flows, half int) {
	s := a.shard(task)
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.of[task]; u != nil {
		return u.flows, u.half
	}
	return 0, 0
}

func (a *tasks) len() (n int) {
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		n += len(s.of)
		s.mu.Unlock()
	}
	return n
}

func (a admission) reason() Reason {
	switch a {
	case admitted:
		return packet.OK
	case overFlows, overHalf:
		return packet.TaskFlowLimit
	}
	return packet.TableFull
}
