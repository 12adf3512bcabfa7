package flowlog

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fe919326/spillway/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var eni = EndpointInfo{
	Account: "123456789012", ID: "eni-0a1b2c3d4e5f60718", Subnet: "subnet-a", VPC: "vpc-1", Zone: "use1-az1", Region: "us-east-1",
	V4: netip.MustParseAddr("10.0.1.50"), V6: netip.MustParseAddr("fd00:1::50"),
}

// denied is a refused SYN.
func denied(e *Endpoint, inner, remote string) Record {
	return Record{
		Endpoint: e, Task: "task-1", Service: "web", Inner: ap(inner), Remote: ap(remote), Proto: packet.ProtoTCP,
		TCPFlags: packet.SYN, Bytes: 60, Direction: Egress, Action: Reject, Reason: packet.DeniedByPolicy,
	}
}

// awsLine is the version 2 line as the VPC user guide tells each column: the
// columns of traffic are all there or all absent, but for the sizes, which
// SKIPDATA has too.
var awsLine = regexp.MustCompile(`^2 (\d{12}|[A-Za-z0-9_.:/%-]+) ([A-Za-z0-9_.:/%-]+) ` +
	`(?:([0-9a-f.:]+) ([0-9a-f.:]+) (\d{1,5}) (\d{1,5}) (\d{1,3}) (\d+) (\d+) (\d+) (\d+) (ACCEPT|REJECT) (OK)` +
	`|- - - - - - - (\d+) (\d+) - (NODATA)` +
	`|- - - - - (\d+) (\d+) (\d+) (\d+) - (SKIPDATA))$`)

type sums struct{ packets, bytes uint64 }

// parseAWS checks every line strictly and returns the sums by log-status.
func parseAWS(t testing.TB, text string) (lines []string, byStatus map[string]sums) {
	t.Helper()
	byStatus = map[string]sums{}
	if text != "" && !strings.HasSuffix(text, "\n") {
		t.Fatalf("the log ends with a torn line: %q", text[max(0, len(text)-100):])
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		m := awsLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("no AWS version 2 line: %q", line)
		}
		if n := len(strings.Split(line, " ")); n != 14 {
			t.Fatalf("%d fields, want 14: %q", n, line)
		}
		lines = append(lines, line)
		f := strings.Split(line, " ")
		start, _ := strconv.ParseInt(f[10], 10, 64)
		end, _ := strconv.ParseInt(f[11], 10, 64)
		if end < start {
			t.Fatalf("end before start: %q", line)
		}
		s := byStatus[f[13]]
		p, _ := strconv.ParseUint(f[8], 10, 64)
		b, _ := strconv.ParseUint(f[9], 10, 64)
		s.packets, s.bytes = s.packets+p, s.bytes+b
		byStatus[f[13]] = s
	}
	return lines, byStatus
}

// start runs l until the returned function is called, which returns what Run
// returned.
func start(t testing.TB, l *Logger) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var err error
	ended := false
	stop = func() error {
		if !ended {
			ended = true
			cancel()
			err = <-done
		}
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newLogger(t testing.TB, cfg Config) *Logger {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// eventually waits until f is true: for things that a goroutine does.
func eventually(t testing.TB, within time.Duration, what string, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}
