package engine

import (
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// bucket is a token bucket: rate tokens a second, at most burst at once.
type bucket struct {
	tokens float64
	last   clock.Mono
}

func (b *bucket) take(now clock.Mono, rate, burst float64) bool {
	if b.last == 0 {
		b.tokens = burst
	} else if now > b.last {
		b.tokens = min(burst, b.tokens+rate*now.Sub(b.last).Seconds())
	}
	b.last = max(now, b.last)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Rates that are the same for every task.
const (
	answersPerTask  = 1000 // refusals told to one task, a second
	answersBurst    = 1000
	tooBigPerSlot   = 1000 // packet-too-big told to the subnet, a second
	limitsIdle      = 10 * time.Second
	limitsMaxTasks  = 1 << 16
	limitsSweepStep = time.Second
)

// taskLimits is what one task has left of its rates.
type taskLimits struct {
	flows   bucket
	answers bucket
	used    clock.Mono
}

// limits holds the rates of all tasks of one endpoint address. It is touched
// only by first packets and refusals, never by packets of a live flow.
type limits struct {
	newFlows float64 // a second; immutable

	mu     sync.Mutex
	tasks  map[uint32]*taskLimits // guarded by mu; at most limitsMaxTasks
	swept  clock.Mono             // guarded by mu
	bigger bucket                 // guarded by mu
}

func newLimits(newFlows int) *limits {
	return &limits{newFlows: float64(newFlows), tasks: make(map[uint32]*taskLimits)}
}

// newFlow takes one flow from the task's rate.
func (l *limits) newFlow(task uint32, now clock.Mono) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.taskLocked(task, now)
	return t != nil && t.flows.take(now, l.newFlows, 2*l.newFlows)
}

// answer takes one answer to a refusal from the task's rate: the limit is per
// task, so that no task can read another's behaviour off it (RFC 1812 section
// 4.3.2.8).
func (l *limits) answer(task uint32, now clock.Mono) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.taskLocked(task, now)
	return t != nil && t.answers.take(now, answersPerTask, answersBurst)
}

// tooBig takes one packet-too-big towards the subnet.
func (l *limits) tooBig(now clock.Mono) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bigger.take(now, tooBigPerSlot, tooBigPerSlot)
}

func (l *limits) taskLocked(task uint32, now clock.Mono) *taskLimits {
	t := l.tasks[task]
	if t == nil {
		if len(l.tasks) >= limitsMaxTasks {
			l.sweepLocked(now)
			if len(l.tasks) >= limitsMaxTasks {
				return nil
			}
		}
		t = new(taskLimits)
		l.tasks[task] = t
	}
	t.used = now
	return t
}

// sweepLocked forgets tasks whose buckets are full again anyway. It looks at
// all of them at most once per limitsSweepStep.
func (l *limits) sweepLocked(now clock.Mono) {
	if l.swept != 0 && now.Sub(l.swept) < limitsSweepStep {
		return
	}
	l.swept = now
	for id, t := range l.tasks {
		if now.Sub(t.used) > limitsIdle {
			delete(l.tasks, id)
		}
	}
}
