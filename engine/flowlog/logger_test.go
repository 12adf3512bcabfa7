package flowlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

func TestNewRefusesBadConfig(t *testing.T) {
	for _, cfg := range []Config{
		{}, {Path: "x", Writer: &bytes.Buffer{}}, {Path: "x", Format: "bogus"}, {Path: "x", Interval: time.Millisecond},
		{Path: "x", Ring: -1}, {Path: "x", Ring: 1 << 20}, {Path: "x", MaxBuffer: 1}, {Path: "x", MaxBuffer: 1 << 30},
	} {
		if l, err := New(cfg); err == nil || l != nil {
			t.Errorf("New(%+v) took it", cfg)
		}
	}
}

func TestRefusalIsInTheFileAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flow.log")
	l := newLogger(t, Config{Path: path})
	e := l.AddEndpoint(eni)
	stop := start(t, l)
	r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
	eventually(t, 5*time.Second, "Run sleeps", l.sleeping.Load)
	l.Record(&r)
	took := eventually(t, 2*time.Second, "the refusal is in the file", func() bool { return strings.Contains(read(t, path), "REJECT") })
	t.Logf("visible after %v", took)
	for range 4 {
		l.Record(&r)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	lines, byStatus := parseAWS(t, read(t, path))
	if len(lines) != 2 || byStatus["OK"] != (sums{5, 300}) {
		t.Errorf("lines %q", lines)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o600 {
		t.Errorf("file mode %v, %v: flow logs are private", fi.Mode(), err)
	}
}

func TestIntervalsNoDataAndSamples(t *testing.T) {
	var out bytes.Buffer
	clk := clock.NewFake()
	l := newLogger(t, Config{Writer: &out, Clock: clk, Interval: time.Minute})
	e := l.AddEndpoint(eni)
	quiet := eni
	quiet.ID = "eni-quiet"
	q := l.AddEndpoint(quiet)
	if l.AddEndpoint(quiet) != q {
		t.Error("the same endpoint twice")
	}
	stop := start(t, l)
	ctx := context.Background()
	eventually(t, 5*time.Second, "Run sleeps", l.sleeping.Load)
	from := clk.Wall().Unix()
	clk.Advance(time.Minute)
	s := FlowSample{ // First is zero: from the beginning of the interval
		Endpoint: e, Inner: ap("100.112.0.7:40000"), Outside: ap("10.0.1.50:20641"), Remote: ap("10.0.1.9:5432"), Proto: packet.ProtoTCP,
		Last: clk.Mono().Add(-20 * time.Second), OutPackets: 3, OutBytes: 180, InPackets: 2, InBytes: 120,
		OutFlags: packet.SYN | packet.ACK, InFlags: packet.SYN | packet.ACK,
	}
	if err := l.SampleWait(ctx, &s); err != nil {
		t.Fatal(err)
	}
	if err := l.EndInterval(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the interval ended", func() bool { return l.Stats().Lines == 3 && l.Stats().Buffered == 0 && l.Stats().Bytes > 0 })
	l.RemoveEndpoint(q)
	l.RemoveEndpoint(q)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.50 10.0.1.9 20641 5432 6 3 180 %[2]d %[3]d ACCEPT OK
2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.9 10.0.1.50 5432 20641 6 2 120 %[2]d %[3]d ACCEPT OK
2 123456789012 eni-quiet - - - - - - - %[1]d %[4]d - NODATA
2 123456789012 eni-0a1b2c3d4e5f60718 - - - - - - - %[4]d %[4]d - NODATA
`, from, from, from+40, from+60)
	if got := out.String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	parseAWS(t, out.String())
}

func TestIntervalsEndByThemselves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flow.log")
	l := newLogger(t, Config{Path: path, Interval: 100 * time.Millisecond})
	l.AddEndpoint(eni)
	start(t, l)
	eventually(t, 10*time.Second, "three intervals without EndInterval", func() bool { return strings.Count(read(t, path), "NODATA") >= 3 })
}

// blocker is a Writer that blocks until it is released, as a hung disk does.
type blocker struct {
	release chan struct{}
	entered atomic.Bool
	mu      sync.Mutex
	out     bytes.Buffer // guarded by mu
}

func (b *blocker) Write(p []byte) (int, error) {
	b.entered.Store(true)
	<-b.release
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

// TestK10_BlockedSink blocks the writer while many goroutines record: none
// waits, and in the end lines and losses add up to what was recorded.
func TestK10_BlockedSink(t *testing.T) {
	w := &blocker{release: make(chan struct{})}
	l := newLogger(t, Config{Writer: w, Ring: 64, Aggregation: AggregatorConfig{MaxKeys: 100}})
	e := l.AddEndpoint(eni)
	stop := start(t, l)
	r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
	l.Record(&r)
	eventually(t, 5*time.Second, "the writer blocks", w.entered.Load)
	const workers, each = 4, 5000
	var wg sync.WaitGroup
	var dropped atomic.Uint64
	began := time.Now()
	for i := range workers {
		wg.Go(func() {
			for j := range each {
				r := denied(e, fmt.Sprintf("100.112.0.%d:40000", i), fmt.Sprintf("10.0.1.9:%d", j%500))
				if !l.Record(&r) {
					dropped.Add(1)
				}
				s := FlowSample{Endpoint: e, Inner: r.Inner, Remote: r.Remote, Proto: 17, OutPackets: 2, OutBytes: 7, InPackets: 1, InBytes: 9}
				if !l.Sample(&s) {
					dropped.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("workers took %v: the log made them wait", took)
	}
	if dropped.Load() == 0 || l.Stats().LostRecords < dropped.Load() {
		t.Errorf("%d dropped, %+v", dropped.Load(), l.Stats())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := l.SampleWait(ctx, &FlowSample{Endpoint: e, OutPackets: 10, OutBytes: 10}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("SampleWait on a full ring: %v", err)
	}
	began = time.Now()
	for range 1000 {
		if err := l.SampleWait(context.Background(), &FlowSample{Endpoint: e, InPackets: 1, InBytes: 1}); !errors.Is(err, ErrStalled) {
			t.Fatalf("SampleWait on a hung log: %v", err)
		}
	}
	if err := l.EndInterval(context.Background()); !errors.Is(err, ErrStalled) {
		t.Errorf("EndInterval on a hung log: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a thousand samples waited %v for a hung log", took)
	}
	close(w.release)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	lines, byStatus := parseAWS(t, w.out.String())
	ok, skip := byStatus["OK"], byStatus["SKIPDATA"]
	wantPackets, wantBytes := uint64(1+workers*each*4+1010), uint64(60+workers*each*76+1010)
	if ok.packets+skip.packets != wantPackets || ok.bytes+skip.bytes != wantBytes {
		t.Errorf("%d lines tell %d packets %d bytes and the loss of %d and %d, together not %d and %d",
			len(lines), ok.packets, ok.bytes, skip.packets, skip.bytes, wantPackets, wantBytes)
	}
	if skip.packets == 0 || skip.packets != l.Stats().LostPackets {
		t.Errorf("SKIPDATA tells %d packets, Stats %d", skip.packets, l.Stats().LostPackets)
	}
}

func TestConcurrentUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flow.log")
	l := newLogger(t, Config{Path: path, Format: "json", Interval: 100 * time.Millisecond})
	stop := start(t, l)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			info := eni
			info.ID = fmt.Sprintf("eni-%d", i%2)
			for j := range 300 {
				info.Zone = fmt.Sprint(j)
				e := l.AddEndpoint(info)
				r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
				l.Record(&r)
				l.Sample(&FlowSample{Endpoint: e, OutPackets: 1})
				switch j % 50 {
				case 7:
					l.RemoveEndpoint(e)
				case 8:
					l.Reopen()
				case 9:
					if err := l.EndInterval(context.Background()); err != nil {
						t.Error(err)
					}
				}
				l.Stats()
			}
		})
	}
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.Run(context.Background()); !errors.Is(err, ErrRunning) {
		t.Errorf("second Run: %v", err)
	}
}

func TestReopenAfterRotation(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "flow.log"), filepath.Join(dir, "flow.log.1")
	l := newLogger(t, Config{Path: path})
	e := l.AddEndpoint(eni)
	stop := start(t, l)
	record := func(port int) {
		r := denied(e, "100.112.0.7:40000", fmt.Sprintf("10.0.1.9:%d", port))
		l.Record(&r)
		eventually(t, 5*time.Second, "line is written", func() bool {
			return l.Stats().Lines > 0 && strings.Contains(read(t, path)+read(t, old), fmt.Sprintf(" %d 6 ", port))
		})
	}
	record(1001)
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	record(1002) // still to the old file
	l.Reopen()
	record(1003)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if a, b := read(t, old), read(t, path); !strings.Contains(a, " 1001 6 ") || !strings.Contains(a, " 1002 6 ") || !strings.Contains(b, " 1003 6 ") {
		t.Errorf("old file %q, new file %q", a, b)
	}
}

func TestSymbolicLinkAndDirectoryAreRefused(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, dir, filepath.Join(dir, "no", "such", "dir")} {
		l := newLogger(t, Config{Path: path})
		e := l.AddEndpoint(eni)
		stop := start(t, l)
		r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
		l.Record(&r)
		eventually(t, 5*time.Second, "an error is counted", func() bool { return l.Stats().Errors > 0 })
		if err := stop(); err == nil {
			t.Errorf("%s: Run claims that all is written", path)
		}
	}
	if read(t, victim) != "precious" {
		t.Error("the log followed a symbolic link")
	}
}

func TestTornLineOfAKilledProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flow.log")
	if err := os.WriteFile(path, []byte("2 123456789012 eni-1 10.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLogger(t, Config{Path: path})
	l.AddEndpoint(eni)
	stop := start(t, l)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	torn, rest, _ := strings.Cut(read(t, path), "\n")
	if lines, _ := parseAWS(t, rest); torn != "2 123456789012 eni-1 10.0" || len(lines) != 1 {
		t.Errorf("the torn line swallowed a good one: %q", read(t, path))
	}
}

func TestRingOrderAndBounds(t *testing.T) {
	r := newRing[int](5)
	if len(r.slots) != 8 {
		t.Fatalf("%d slots", len(r.slots))
	}
	for round := range 10 {
		for i := range 8 {
			if v := round*100 + i; !r.push(&v) {
				t.Fatal("no room")
			}
		}
		if v := -1; r.push(&v) {
			t.Fatal("a full ring took one more")
		}
		for i := range 8 {
			var v int
			if !r.pop(&v) || v != round*100+i {
				t.Fatalf("popped %d in round %d", v, round)
			}
		}
		var v int
		if r.pop(&v) || !r.empty() {
			t.Fatal("an empty ring gave something")
		}
	}
}

func TestRingManyProducers(t *testing.T) {
	r := newRing[[2]int](64)
	const workers, each = 4, 20000
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				for v := [2]int{w, i}; !r.push(&v); {
					time.Sleep(time.Microsecond)
				}
			}
		})
	}
	var next [workers]int
	for n := 0; n < workers*each; {
		var v [2]int
		if !r.pop(&v) {
			time.Sleep(time.Microsecond)
			continue
		}
		if v[1] != next[v[0]] {
			t.Fatalf("producer %d: got %d, want %d: lost, doubled or reordered", v[0], v[1], next[v[0]])
		}
		next[v[0]]++
		n++
	}
	wg.Wait()
}

func TestNoAllocs(t *testing.T) {
	l := newLogger(t, Config{Writer: &bytes.Buffer{}, Ring: 1024})
	e := l.AddEndpoint(eni)
	r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
	s := FlowSample{Endpoint: e, OutPackets: 1}
	for _, when := range []string{"room", "full"} {
		if n := testing.AllocsPerRun(700, func() {
			c := r
			c.Bytes++
			l.Record(&c)
			d := s
			d.OutBytes++
			l.Sample(&d)
		}); n != 0 {
			t.Errorf("%v allocations per record (%s)", n, when)
		}
	}
	if l.Stats().LostRecords == 0 {
		t.Error("the ring never was full: the test tested half")
	}
}
