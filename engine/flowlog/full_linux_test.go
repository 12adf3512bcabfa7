package flowlog

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestK10_DevFull writes to a device that always says ENOSPC.
func TestK10_DevFull(t *testing.T) {
	l := newLogger(t, Config{Path: "/dev/full", MaxBuffer: 64 << 10, Aggregation: AggregatorConfig{MaxKeys: 1 << 16, MaxKeysPerSource: 1 << 16}})
	e := l.AddEndpoint(eni)
	stop := start(t, l)
	for i := range 5000 {
		r := denied(e, fmt.Sprintf("100.112.0.7:%d", i+1), "10.0.1.9:22")
		l.Record(&r)
	}
	eventually(t, 10*time.Second, "ENOSPC is counted and lines are lost", func() bool { s := l.Stats(); return s.Errors > 0 && s.LostRecords > 0 })
	if b := l.Stats().Buffered; b > 64<<10 {
		t.Errorf("%d bytes are buffered, the limit is 64 KiB", b)
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Run: %v, want what is missing and why", err)
	}
}

// TestK10_ResumesAfterSpaceReturns lets the kernel refuse to grow the file, as
// a full disk does (RLIMIT_FSIZE; the last write before it is cut short in the
// middle of a line), and then allows it again: every record is in the file or
// in a SKIPDATA line, and no line is torn.
func TestK10_ResumesAfterSpaceReturns(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()

	path := filepath.Join(t.TempDir(), "flow.log")
	l := newLogger(t, Config{Path: path, MaxBuffer: 64 << 10, Aggregation: AggregatorConfig{MaxKeys: 1 << 16, MaxKeysPerSource: 1 << 16}})
	e := l.AddEndpoint(eni)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 20001, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	stop := start(t, l)
	sent := uint64(0)
	send := func() {
		r := denied(e, fmt.Sprintf("100.112.0.7:%d", sent%60000+1), "10.0.1.9:22")
		l.Record(&r)
		sent++
	}
	for l.Stats().LostRecords == 0 {
		if sent > 1000000 {
			t.Fatal("nothing is ever lost")
		}
		send()
		if sent%100 == 0 {
			time.Sleep(time.Millisecond)
		}
		if sent == 1000 { // some 100 KB: the file's end, and buffered lines
			eventually(t, 5*time.Second, "the file cannot grow", func() bool { return l.Stats().Errors > 0 })
		}
	}
	for range 500 {
		send()
	}
	if n := len(read(t, path)); n != 20001 {
		t.Fatalf("the file has %d bytes: the limit did not bite", n)
	}
	restore()
	took := eventually(t, 5*time.Second, "the log resumes and tells what was lost", func() bool { return strings.Contains(read(t, path), "SKIPDATA") })
	t.Logf("resumed after %v, %+v", took, l.Stats())
	for range 100 {
		send()
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_, byStatus := parseAWS(t, read(t, path))
	ok, skip := byStatus["OK"], byStatus["SKIPDATA"]
	if ok.packets+skip.packets != sent || ok.bytes+skip.bytes != 60*sent || skip.packets == 0 {
		t.Errorf("%d packets told and %d lost, together not %d", ok.packets, skip.packets, sent)
	}
}

// TestPipeWithoutReader: nobody reads a pipe, then somebody does.
func TestPipeWithoutReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLogger(t, Config{Path: path})
	e := l.AddEndpoint(eni)
	stop := start(t, l)
	r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
	l.Record(&r)
	eventually(t, 5*time.Second, "opening fails without waiting", func() bool { return l.Stats().Errors > 0 })
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	began := time.Now()
	b := make([]byte, 4096)
	n := 0
	eventually(t, 5*time.Second, "the line arrives", func() bool { n, _ = f.Read(b); return n > 0 })
	t.Logf("resumed after %v", time.Since(began))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	parseAWS(t, string(b[:n]))
}
