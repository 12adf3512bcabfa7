package flowlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// ErrRunning is returned by a second Run.
var ErrRunning = errors.New("flow log: Run was called before")

// lastTries is how long Run goes on trying to write after it was told to end.
const lastTries = time.Second

// writeAt is how many bytes of lines are written without waiting for more.
const writeAt = 64 << 10

// Run writes the log until ctx is done, then writes what is left: end the
// goroutines that hand over records first. It returns nil if everything that
// was handed over is in the file or was told as lost there, else an error that
// says how much is missing. A file that cannot be opened or written does not
// end it: it tries again until it can, at least every 2 s. Run may be called
// once.
func (l *Logger) Run(ctx context.Context) error {
	if l.running.Swap(true) {
		return ErrRunning
	}
	defer l.sink.close()
	l.now()
	l.started, l.patient = l.moment.mono, true
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		l.now()
		if l.reopen.Swap(false) {
			l.sink.close()
			l.sink.retryNow()
		}
		more := l.drain()
		if l.moment.mono >= l.intervalLimit() {
			l.patient = false
			l.endInterval()
		}
		l.flush()
		if more {
			continue
		}
		timer.Reset(l.untilNext())
		l.sleeping.Store(true)
		if !l.refusals.empty() || !l.samples.empty() || l.reopen.Load() {
			// Came while we fell asleep: their producers saw us awake.
			l.sleeping.Store(false)
		} else {
			select {
			case <-l.wake:
			case <-timer.C:
			case <-ctx.Done():
			}
			l.sleeping.Store(false)
		}
		pause(ctx, timer, gather)
	}
	return l.finish()
}

// pause sleeps for d unless ctx ends first.
func pause(ctx context.Context, t *time.Timer, d time.Duration) {
	t.Reset(d)
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// now reads both clocks.
func (l *Logger) now() { l.moment = moment{l.clock.Mono(), l.clock.Wall()} }

// intervalLimit is when the interval ends though nobody called EndInterval.
// Whoever calls it is given half an interval of patience, and so is the first
// interval, in which nobody knows whether somebody will.
func (l *Logger) intervalLimit() clock.Mono {
	if l.patient {
		return l.started.Add(l.cfg.Interval + l.cfg.Interval/2)
	}
	return l.started.Add(l.cfg.Interval)
}

// untilNext is how long there is nothing to do if nobody wakes Run.
func (l *Logger) untilNext() time.Duration {
	d := l.intervalLimit().Sub(l.moment.mono)
	if l.sink.failed != nil && len(l.sink.buf) > 0 {
		d = min(d, l.sink.retryAt.Sub(l.moment.mono))
	}
	return max(d, time.Millisecond)
}

// drain takes records and samples from the rings, at most as many as the rings
// hold, and reports whether there may be more.
func (l *Logger) drain() bool {
	if l.stalled.Load() {
		l.stalled.Store(false)
	}
	for range len(l.refusals.slots) {
		if !l.refusals.pop(&l.scratch) {
			break
		}
		l.take(&l.scratch)
	}
	for i := range len(l.samples.slots) {
		if i&255 == 255 && !l.refusals.empty() {
			break // a long walk over flows must not make refusals wait
		}
		if !l.samples.pop(&l.scratchS) {
			break
		}
		if l.scratchS.end {
			l.patient = true
			l.endInterval()
			continue
		}
		s := &l.scratchS.FlowSample
		if s.First == 0 {
			s.First = l.started
			if s.Last != 0 {
				s.First = min(s.First, s.Last)
			}
		}
		l.stamp(&s.First, &s.Last)
		l.agg.AddFlow(s, l.emitFunc)
	}
	l.scratch, l.scratchS = Record{}, sampleOrEnd{}
	return !l.refusals.empty() || !l.samples.empty()
}

func (l *Logger) take(r *Record) {
	l.stamp(&r.First, &r.Last)
	if !l.agg.Add(r, l.emitFunc) {
		l.lose(r.Endpoint, 1, max(r.Packets, 1), r.Bytes)
	}
}

// stamp fills in times that were left out.
func (l *Logger) stamp(first, last *clock.Mono) {
	if *last == 0 {
		*last = l.moment.mono
	}
	if *first == 0 {
		*first = *last
	}
}

// emit formats one record into the sink's buffer.
func (l *Logger) emit(r *Record) {
	line := Line{Record: *r, Made: l.moment.wall}
	wallTimes(&line, l.moment.mono)
	if r.Endpoint != nil {
		r.Endpoint.hadLine = true
	}
	if !l.put(&line) {
		l.lose(r.Endpoint, 1, r.Packets, r.Bytes)
	}
}

// put formats a line into the sink's buffer, or reports false if there is no
// room for it because the file cannot be written.
func (l *Logger) put(line *Line) bool {
	l.line = l.format.Append(l.line[:0], line)
	if len(l.sink.buf) >= writeAt || !l.sink.room(len(l.line)) {
		l.write()
	}
	if !l.sink.room(len(l.line)) {
		return false
	}
	l.sink.buf = append(l.sink.buf, l.line...)
	l.counters.lines.Add(1)
	return true
}

// endInterval writes what the interval held back, tells what was lost, and
// says NODATA for endpoints that had nothing.
func (l *Logger) endInterval() {
	l.now()
	l.agg.End(l.emitFunc)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tellLostLocked()
	for _, e := range l.endpoints {
		if !e.hadLine {
			line := l.intervalLine(e, StatusNoData)
			l.put(&line) // nothing is lost with a line that tells nothing
		}
		e.hadLine = false
	}
	for _, e := range l.leaving {
		// Nobody will ask this endpoint again: what could not be told of it is
		// told without its name.
		l.unknown.lose(e.takeLost())
	}
	// A worker may still have a packet of one that was removed just now: it is
	// asked once more.
	l.leaving, l.removed = l.removed, nil
	l.started = l.moment.mono
}

// tellLostLocked writes SKIPDATA lines. l.mu is held.
func (l *Logger) tellLostLocked() {
	for _, e := range l.endpoints {
		l.tellLostOf(e)
	}
	for _, e := range l.removed {
		l.tellLostOf(e)
	}
	for _, e := range l.leaving {
		l.tellLostOf(e)
	}
	l.tellLostOf(l.unknown)
}

func (l *Logger) tellLostOf(e *Endpoint) {
	records, packets, bytes := e.takeLost()
	if records == 0 && packets == 0 && bytes == 0 {
		return
	}
	e.hadLine = true
	line := l.intervalLine(e, StatusSkipData)
	line.Lost, line.Packets, line.Bytes = records, packets, bytes
	if !l.put(&line) {
		e.lose(records, packets, bytes) // tell it another time
	}
}

// intervalLine is a line about the interval so far.
func (l *Logger) intervalLine(e *Endpoint, s Status) Line {
	line := Line{Record: Record{Endpoint: e, First: l.started, Last: l.moment.mono}, Status: s, Made: l.moment.wall}
	wallTimes(&line, l.moment.mono)
	return line
}

// write writes the buffer, and says so if that stops or starts working.
func (l *Logger) write() {
	was := l.sink.failed
	n, recovered, err := l.sink.flush(l.moment.mono)
	l.counters.bytes.Add(uint64(n))
	l.counters.buffer.Store(uint64(len(l.sink.buf)))
	if err != nil {
		l.counters.errors.Add(1)
		if was == nil {
			l.log.Error("flow log cannot be written; lines are kept in memory, then counted as lost", "path", l.cfg.Path, "err", err)
		}
	}
	if recovered {
		l.recovered = true
		l.log.Info("flow log is written again", "path", l.cfg.Path)
	}
}

// flush writes the buffer, and what was lost where that works again.
func (l *Logger) flush() {
	l.write()
	if !l.recovered {
		return
	}
	l.recovered = false
	l.mu.Lock()
	l.tellLostLocked()
	l.mu.Unlock()
	l.write()
}

// finish writes what is left after the producers have ended.
func (l *Logger) finish() error {
	for l.drain() {
		l.flush()
	}
	l.endInterval()
	l.mu.Lock()
	l.tellLostLocked()
	l.mu.Unlock()
	l.sink.retryNow()
	deadline := time.NewTimer(lastTries)
	defer deadline.Stop()
	for {
		l.now()
		l.flush()
		if len(l.sink.buf) == 0 {
			return nil
		}
		if l.sink.failed == nil {
			continue // what recovery told is still in the buffer
		}
		select {
		case <-deadline.C:
			return fmt.Errorf("flow log: %d bytes of lines are not written: %w", len(l.sink.buf), l.sink.failed)
		case <-time.After(50 * time.Millisecond):
			l.sink.retryNow()
		}
	}
}
