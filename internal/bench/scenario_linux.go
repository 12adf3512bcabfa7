package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
)

// runner measures one mode in one set of namespaces.
type runner struct {
	cfg  *Config
	net  *net3
	path *path
	add  func(metric string, value float64)
	// bulks counts runs of iperf3.
	bulks int
}

// The metrics. Their order is the order of the table's rows.
const (
	BulkUp       = "bulk TCP up, Gb/s"
	BulkDown     = "bulk TCP down, Gb/s"
	CPUUp        = "tunnel CPU-s/GB up"
	CPUDown      = "tunnel CPU-s/GB down"
	MachineUp    = "machine CPU-s/GB up"
	MachineDown  = "machine CPU-s/GB down"
	Memory       = "peak RSS of a tunnel process on bulk, MB"
	StreamsUp    = "4 streams up, Gb/s"
	StreamsDown  = "4 streams down, Gb/s"
	UDPBlast     = "64 B UDP blast delivered, kpps"
	UDPRate      = "64 B UDP at <= 0.5 % loss, kpps"
	Connects     = "new TCP connections/s"
	LatencyP50   = "request p50, us"
	LatencyP99   = "request p99, us"
	BusyP50      = "request p50 beside bulk, us"
	BusyP99      = "request p99 beside bulk, us"
	NoOffloadUp  = "bulk up, no veth offloads, Gb/s"
	NoOffloadDn  = "bulk down, no veth offloads, Gb/s"
	JumboUp      = "bulk up, MTU 9000, Gb/s"
	JumboDown    = "bulk down, MTU 9000, Gb/s"
	ConnectsLost = "failed TCP connections"
)

// Metrics lists the metrics in the order of the table.
func Metrics() []string {
	return []string{BulkUp, BulkDown, CPUUp, CPUDown, MachineUp, MachineDown, Memory, StreamsUp, StreamsDown, UDPBlast, UDPRate,
		Connects, ConnectsLost, LatencyP50, LatencyP99, BusyP50, BusyP99, NoOffloadUp, NoOffloadDn, JumboUp, JumboDown}
}

// setting is the network that scenarios need.
type setting struct {
	mtu      int
	offloads bool
}

func settingOf(scenario string) setting {
	switch scenario {
	case ScenarioNoOffl:
		return setting{1500, false}
	case ScenarioJumbo:
		return setting{9000, true}
	}
	return setting{1500, true}
}

// run starts the servers, checks the way, and measures.
func (r *runner) run(ctx context.Context, scenarios []string) (err error) {
	echo, err := r.serve(ctx, command{path: r.cfg.Self, args: []string{LoadVerb, "echo", "-for", "24h"}}, readyLine)
	if err != nil {
		return err
	}
	defer echo.stop()
	// Handshakes, neighbours and caches are not what is measured; and a mode
	// that carries nothing should say so at once.
	for _, ns := range r.path.apps {
		if err := waitFor(ctx, "the way to the server", func() error {
			_, err := r.load(ctx, ns, "latency", 300*time.Millisecond, nil)
			return err
		}); err != nil {
			return err
		}
	}
	for _, s := range scenarios {
		if err := r.scenario(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (r *runner) scenario(ctx context.Context, s string) error {
	switch s {
	case ScenarioBulk:
		return r.bulkPair(ctx, 1, BulkUp, BulkDown, true)
	case ScenarioStreams:
		return r.bulkPair(ctx, 4, StreamsUp, StreamsDown, false)
	case ScenarioNoOffl:
		return r.bulkPair(ctx, 1, NoOffloadUp, NoOffloadDn, false)
	case ScenarioJumbo:
		return r.bulkPair(ctx, 1, JumboUp, JumboDown, false)
	case ScenarioUDP:
		received, sent, err := r.blast(ctx, 0, r.cfg.secs())
		if err == nil && sent == 0 {
			err = errors.New("nothing was sent")
		}
		r.add(UDPBlast, float64(received.InTime)/r.cfg.secs().Seconds()/1000)
		return err
	case ScenarioUDPRate:
		return r.udpRate(ctx)
	case ScenarioConnect:
		return r.connects(ctx)
	case ScenarioLatency:
		return r.latencies(ctx)
	}
	return fmt.Errorf("no scenario %q", s)
}

func (r *runner) bulkPair(ctx context.Context, streams int, up, down string, costs bool) error {
	pids := r.path.tunnels
	if costs && len(pids) > 0 {
		if err := resetPeaks(pids); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		metric, cpu, machine string
		reverse              bool
	}{{up, CPUUp, MachineUp, false}, {down, CPUDown, MachineDown, true}} {
		cpu0, err1 := cpuTime(pids)
		busy0, err2 := machineBusy()
		bytes, rate, err := r.bulk(ctx, r.path.apps[0], streams, d.reverse)
		cpu1, err3 := cpuTime(pids)
		busy1, err4 := machineBusy()
		if err := errors.Join(err, err1, err2, err3, err4); err != nil {
			return err
		}
		r.add(d.metric, rate/1e9)
		if gb := bytes / 1e9; costs && gb > 0 {
			r.add(d.machine, (busy1-busy0).Seconds()/gb)
			if len(pids) > 0 {
				r.add(d.cpu, (cpu1-cpu0).Seconds()/gb)
			}
		}
	}
	if costs && len(pids) > 0 {
		peak, err := peakMemory(pids)
		if err != nil {
			return err
		}
		r.add(Memory, float64(peak)/1e6)
	}
	return nil
}

// bulk runs iperf3 for the configured time and returns what arrived, in
// bytes and bits per second.
func (r *runner) bulk(ctx context.Context, ns *hostnet.NS, streams int, reverse bool) (bytes, bits float64, err error) {
	b, err := r.startBulk(ctx, ns, streams, r.cfg.Secs, reverse)
	if err != nil {
		return 0, 0, err
	}
	defer b.server.stop()
	ctx, cancel := context.WithTimeout(ctx, r.cfg.secs()+30*time.Second)
	defer cancel()
	out, err := b.client.wait(ctx)
	var result struct {
		Error string
		End   struct {
			Received struct {
				Bytes float64
				Bits  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			Sender string `json:"sender_tcp_congestion"`
		}
	}
	if jerr := json.Unmarshal([]byte(out), &result); err == nil {
		err = jerr
	}
	if result.Error != "" {
		err = fmt.Errorf("iperf3: %s", result.Error)
	}
	if cc := result.End.Sender; err == nil && cc != congestion {
		err = fmt.Errorf("iperf3 sent with congestion control %q, not %s", cc, congestion)
	}
	return result.End.Received.Bytes, result.End.Received.Bits, err
}

// bulkRun is a pair of iperf3 processes. Every run has a server and a port of
// its own: a server that still waits for the end of the last run would refuse.
type bulkRun struct{ client, server *process }

func (r *runner) startBulk(ctx context.Context, ns *hostnet.NS, streams, secs int, reverse bool) (b bulkRun, err error) {
	port := fmt.Sprint(bulkPort + r.bulks)
	r.bulks++
	b.server, err = r.serve(ctx, command{path: "iperf3", args: []string{"-s", "-1", "-p", port, "--forceflush"}}, "Server listening")
	if err != nil {
		return b, err
	}
	args := []string{"-c", r.path.server.String(), "-p", port, "-t", fmt.Sprint(secs), "-P", fmt.Sprint(streams),
		"-J", "-C", congestion, "--connect-timeout", "3000"}
	if reverse {
		args = append(args, "-R")
	}
	if b.client, err = start(ns, command{path: "iperf3", args: args}); err != nil {
		b.server.stop()
	}
	return b, err
}

// serve starts a server and waits until it prints that it listens.
func (r *runner) serve(ctx context.Context, c command, ready string) (*process, error) {
	p, err := start(r.net.server.ns, c)
	if err != nil {
		return nil, err
	}
	err = waitFor(ctx, p.name, func() error {
		if err := p.alive(); err != nil {
			return err
		}
		if !strings.Contains(p.out.String(), ready) {
			return errors.New("does not listen yet")
		}
		return nil
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// load runs one load in ns and decodes its report into v, if v is not nil.
func (r *runner) load(ctx context.Context, ns *hostnet.NS, what string, d time.Duration, v any, args ...string) (string, error) {
	p, err := start(ns, command{path: r.cfg.Self,
		args: append([]string{LoadVerb, what, "-to", r.path.server.String(), "-for", d.String()}, args...)})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d+30*time.Second)
	defer cancel()
	out, err := p.wait(ctx)
	if err == nil && v != nil {
		err = json.Unmarshal([]byte(strings.TrimPrefix(out, readyLine)), v)
	}
	return out, err
}

// blast sends datagrams and returns what the server got.
func (r *runner) blast(ctx context.Context, rate int, d time.Duration) (got sinkReport, sent int64, err error) {
	s, err := r.serve(ctx, command{path: r.cfg.Self, args: []string{LoadVerb, "sink", "-for", d.String()}}, readyLine)
	if err != nil {
		return got, 0, err
	}
	defer s.stop()
	var sr sendReport
	if _, err := r.load(ctx, r.path.apps[0], "send", d, &sr, "-rate", fmt.Sprint(rate)); err != nil {
		return got, 0, err
	}
	wait, cancel := context.WithTimeout(ctx, d+40*time.Second)
	defer cancel()
	out, err := s.wait(wait)
	if err != nil {
		return got, 0, err
	}
	return got, sr.Sent, errors.Join(err, json.Unmarshal([]byte(strings.TrimPrefix(out, readyLine)), &got))
}

// Bounds of the search for the highest clean rate, in packets a second.
const (
	rateFrom  = 2_000
	rateMost  = 2_000_000
	rateClose = 1.06 // the search ends when its ends are so close
	lossMost  = 0.005
)

// udpRate finds the highest rate at which at most lossMost is lost: doubling
// until one is not clean, then halving the distance. A rate that is not clean
// gets a second try, since one hiccup of the machine is not the mode's limit.
func (r *runner) udpRate(ctx context.Context) error {
	trial := max(r.cfg.secs()/3, 500*time.Millisecond)
	clean := func(rate float64) (bool, error) {
		for range 2 {
			got, sent, err := r.blast(ctx, int(rate), trial)
			if err != nil {
				return false, err
			}
			asked := rate * trial.Seconds()
			if float64(sent) < 0.95*asked { // the sender itself cannot do more
				return false, nil
			}
			if float64(got.Received) >= (1-lossMost)*float64(sent) {
				return true, nil
			}
		}
		return false, nil
	}
	low, high := 0.0, float64(rateFrom)
	for {
		ok, err := clean(high)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		low, high = high, high*2
		if low >= rateMost {
			break
		}
	}
	for low > 0 && high/low > rateClose && low < rateMost {
		mid := (low + high) / 2
		ok, err := clean(mid)
		if err != nil {
			return err
		}
		if ok {
			low = mid
		} else {
			high = mid
		}
	}
	r.add(UDPRate, low/1000)
	return nil
}

func (r *runner) connects(ctx context.Context) error {
	var c connectReport
	if _, err := r.load(ctx, r.path.apps[0], "connect", r.cfg.secs(), &c); err != nil {
		return err
	}
	r.add(Connects, float64(c.Done)/r.cfg.secs().Seconds())
	r.add(ConnectsLost, float64(c.Failed))
	return nil
}

func (r *runner) latencies(ctx context.Context) error {
	var idle, busy latencyReport
	if _, err := r.load(ctx, r.path.apps[0], "latency", r.cfg.secs(), &idle); err != nil {
		return err
	}
	r.add(LatencyP50, micros(idle.P50))
	r.add(LatencyP99, micros(idle.P99))
	// The bulk flow starts first and ends last.
	b, err := r.startBulk(ctx, r.path.other(), 1, r.cfg.Secs+2, false)
	if err != nil {
		return err
	}
	defer b.server.stop()
	defer b.client.stop()
	select {
	case <-time.After(700 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := r.load(ctx, r.path.apps[0], "latency", r.cfg.secs(), &busy); err != nil {
		return err
	}
	if err := b.client.alive(); err != nil {
		return fmt.Errorf("the bulk flow beside it: %w", err)
	}
	r.add(BusyP50, micros(busy.P50))
	r.add(BusyP99, micros(busy.P99))
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err = b.client.wait(wait)
	return err
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// groups sorts scenarios by the network they need, in the order given.
func groups(scenarios []string) (out []group) {
	for _, s := range Scenarios() {
		if !slices.Contains(scenarios, s) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].setting == settingOf(s) {
			out[n-1].scenarios = append(out[n-1].scenarios, s)
			continue
		}
		out = append(out, group{settingOf(s), []string{s}})
	}
	return out
}

type group struct {
	setting   setting
	scenarios []string
}
