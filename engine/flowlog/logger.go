package flowlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// Config configures a Logger. Exactly one of Path and Writer is required.
type Config struct {
	// Path is the file that lines are appended to. It is made with mode 0600;
	// a file that exists keeps its mode. A symbolic link is refused.
	Path string
	// Writer takes the lines instead. It must not keep them, and a Write that
	// blocks stops the log (never the packets: they are counted as lost).
	Writer io.Writer
	// Format is "aws2" (default), "json", or the field names of a custom AWS
	// format; see ParseFormat.
	Format string
	// Interval is after how long an interval ends by itself where nobody calls
	// EndInterval (the first one, and the last one of a caller that stopped
	// calling, after one and a half times that). Default 60 s, at least 100 ms.
	Interval time.Duration
	// Clock tells the time. Default: the machine's.
	Clock clock.Clock
	// Ring is how many refusals, and as many samples, can wait for Run.
	// Default 16,384 each; rounded up to a power of two; at most 65,536.
	Ring int
	// MaxBuffer is how many bytes of lines are kept while the file cannot be
	// written. Default 8 MiB; from 64 KiB to 32 MiB.
	MaxBuffer int
	// Aggregation bounds what is held of an interval, and says whether the
	// first refusal of a key is written at once (the default).
	Aggregation AggregatorConfig
	// Logger is told when writing fails and when it works again, once each.
	// Default: nobody.
	Logger *slog.Logger
}

// gather is how long Run waits for more records after the first one, so that
// a flood costs few writes. A refusal is in the file not much later.
const gather = 5 * time.Millisecond

// Logger is a flow log. Its methods are safe for concurrent use.
type Logger struct {
	// Immutable after New.
	cfg    Config
	format *Format
	clock  clock.Clock
	log    *slog.Logger

	refusals *ring[Record]
	samples  *ring[sampleOrEnd]

	sleeping atomic.Bool // Run waits for wake
	wake     chan struct{}
	reopen   atomic.Bool
	stalled  atomic.Bool // somebody waited in vain since Run last took something
	running  atomic.Bool
	counters counters

	mu        sync.Mutex
	endpoints map[endpointKey]*Endpoint // guarded by mu
	removed   []*Endpoint               // guarded by mu; removed in this interval
	leaving   []*Endpoint               // guarded by mu; removed in the last one
	unknown   *Endpoint                 // for records without an endpoint

	// Owned by Run.
	agg     *Aggregator
	sink    sink
	line    []byte
	started clock.Mono // of the interval
	patient bool       // somebody calls EndInterval, or may
	moment  moment
	// recovered says that writing works again and losses are to be told.
	recovered bool
	emitFunc  func(*Record)
	scratch   Record
	scratchS  sampleOrEnd
}

type endpointKey struct{ account, id string }

// sampleOrEnd is a sample, or the mark that an interval's samples are all in.
type sampleOrEnd struct {
	FlowSample
	end bool
}

// moment is one point in time in both clocks.
type moment struct {
	mono clock.Mono
	wall time.Time
}

type counters struct {
	lines, bytes, errors             atomic.Uint64
	lostRecords, lostPackets, buffer atomic.Uint64 // buffer: bytes now, not a total
}

// Stats tells what a Logger did so far.
type Stats struct {
	Lines       uint64 // lines made, SKIPDATA and NODATA included
	Bytes       uint64 // bytes written
	Errors      uint64 // tries to write or open that failed
	LostRecords uint64 // records, samples and lines that were lost
	LostPackets uint64 // the packets in them
	Buffered    uint64 // bytes of lines that wait to be written
}

// New checks cfg and returns a Logger. It opens and starts nothing: Run does.
func New(cfg Config) (*Logger, error) {
	if (cfg.Path == "") == (cfg.Writer == nil) {
		return nil, errors.New("flow log: exactly one of Path and Writer is required")
	}
	format, err := ParseFormat(cfg.Format)
	if err != nil {
		return nil, err
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Minute
	}
	if cfg.Interval < 100*time.Millisecond {
		return nil, fmt.Errorf("flow log: interval %v is shorter than 100 ms", cfg.Interval)
	}
	if cfg.Ring == 0 {
		cfg.Ring = 16384
	}
	if cfg.Ring < 1 || cfg.Ring > 65536 {
		return nil, fmt.Errorf("flow log: ring of %d is not from 1 to 65536", cfg.Ring)
	}
	if cfg.MaxBuffer == 0 {
		cfg.MaxBuffer = 8 << 20
	}
	if cfg.MaxBuffer < 64<<10 || cfg.MaxBuffer > 32<<20 {
		return nil, fmt.Errorf("flow log: buffer of %d bytes is not from 64 KiB to 32 MiB", cfg.MaxBuffer)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Logger{
		cfg: cfg, format: format, clock: cfg.Clock, log: cfg.Logger,
		refusals: newRing[Record](cfg.Ring), samples: newRing[sampleOrEnd](cfg.Ring),
		wake:      make(chan struct{}, 1),
		endpoints: make(map[endpointKey]*Endpoint), unknown: NewEndpoint(EndpointInfo{}),
		agg:  NewAggregator(cfg.Aggregation),
		sink: sink{path: cfg.Path, w: cfg.Writer, max: cfg.MaxBuffer},
	}
	l.emitFunc = l.emit
	return l, nil
}

// AddEndpoint returns the endpoint with info's account and id, made if it is
// not known yet, with its other details replaced. From now on intervals
// without packets of it are told as NODATA.
func (l *Logger) AddEndpoint(info EndpointInfo) *Endpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := endpointKey{info.Account, info.ID}
	e := l.endpoints[k]
	if e == nil {
		e = NewEndpoint(info)
		l.endpoints[k] = e
	} else if e.Info() != info {
		e.info.Store(encodeInfo(info))
	}
	return e
}

// RemoveEndpoint ends the NODATA lines of e. Records of it that are still
// under way are written. Removing twice does nothing.
func (l *Logger) RemoveEndpoint(e *Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	info := e.Info()
	k := endpointKey{info.Account, info.ID}
	if l.endpoints[k] == e {
		delete(l.endpoints, k)
		l.removed = append(l.removed, e)
	}
}

// Record hands over a copy of r. It never waits and allocates nothing. It
// reports false if the ring is full: then the record is lost, counted, and
// told by a SKIPDATA line of its endpoint.
func (l *Logger) Record(r *Record) bool {
	if !l.refusals.push(r) {
		l.lose(r.Endpoint, 1, max(r.Packets, 1), r.Bytes)
		return false
	}
	l.wakeUp()
	return true
}

// Sample hands over a copy of s. It never waits and allocates nothing. It
// reports false if the ring is full: then the sample is lost, counted, and told
// by a SKIPDATA line of its endpoint; the caller does not hand it over again.
func (l *Logger) Sample(s *FlowSample) bool {
	if !l.samples.push(&sampleOrEnd{FlowSample: *s}) {
		l.loseSample(s)
		return false
	}
	l.wakeUp()
	return true
}

// ErrStalled is returned where Run has taken nothing for some time: the file's
// system hangs, or Run was not called.
var ErrStalled = errors.New("flow log takes nothing: writing hangs")

// stallAfter is how long SampleWait and EndInterval wait for Run to make room.
// Later calls do not wait again until Run is alive.
const stallAfter = 250 * time.Millisecond

// SampleWait is Sample for a goroutine that may wait a little: it returns when
// there was room, or with ErrStalled after 250 ms without, or with ctx's error
// when ctx is done first. With an error the sample is lost and counted; the
// caller best leaves other flows unsampled until the next interval.
func (l *Logger) SampleWait(ctx context.Context, s *FlowSample) error {
	return l.pushWait(ctx, &sampleOrEnd{FlowSample: *s})
}

// EndInterval ends the aggregation interval behind all samples that this
// goroutine handed over: held refusals, NODATA and SKIPDATA lines are written.
// It waits for room as SampleWait does; with an error the interval goes on.
func (l *Logger) EndInterval(ctx context.Context) error {
	return l.pushWait(ctx, &sampleOrEnd{end: true})
}

func (l *Logger) pushWait(ctx context.Context, s *sampleOrEnd) error {
	if l.samples.push(s) {
		l.wakeUp()
		return nil
	}
	err := ErrStalled
	if !l.stalled.Load() {
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		for range stallAfter / time.Millisecond {
			l.wakeUp()
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			if l.samples.push(s) {
				l.wakeUp()
				return nil
			}
			if ctx.Err() != nil {
				break
			}
		}
		if err = ctx.Err(); err == nil {
			err = ErrStalled
			l.stalled.Store(true)
		}
	}
	if !s.end {
		l.loseSample(&s.FlowSample)
	}
	return err
}

// Reopen closes the file and opens Path anew before the next line, as log
// rotation wants it. It returns at once.
func (l *Logger) Reopen() {
	l.reopen.Store(true)
	l.wakeUp()
}

// Stats returns the counters.
func (l *Logger) Stats() Stats {
	c := &l.counters
	return Stats{
		Lines: c.lines.Load(), Bytes: c.bytes.Load(), Errors: c.errors.Load(),
		LostRecords: c.lostRecords.Load(), LostPackets: c.lostPackets.Load(), Buffered: c.buffer.Load(),
	}
}

func (l *Logger) wakeUp() {
	if l.sleeping.Load() && l.sleeping.CompareAndSwap(true, false) {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

func (l *Logger) lose(e *Endpoint, records, packets, bytes uint64) {
	if e == nil {
		e = l.unknown
	}
	e.lose(records, packets, bytes)
	l.counters.lostRecords.Add(records)
	l.counters.lostPackets.Add(packets)
}

func (l *Logger) loseSample(s *FlowSample) {
	l.lose(s.Endpoint, 1, s.OutPackets+s.InPackets, s.OutBytes+s.InBytes)
}
