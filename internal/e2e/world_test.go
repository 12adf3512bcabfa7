//go:build netns && linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// scene says what a test's world looks like.
type scene struct {
	Lab  netlab.Config // V6 is always on
	Pair spill.Pair    // Egress, Host and Lab are filled in
	// Claim makes Pair.Claim of the lab, for claims by a program.
	Claim func(*netlab.Lab) string
	// Attach attaches every task of the lab to service web.
	Attach bool
}

// world is a running pair of machines with servers on the subnet.
type world struct {
	*netlab.Lab
	t       *testing.T
	ctx     context.Context
	pair    spill.Pair
	egress  *spill.Node
	host    *spill.Node
	servers []*servers.Set
	server  *netlab.Box // the first
	tasks   []api.Task  // as attached, by number
	out4    netip.Addr  // the first endpoint's addresses
	out6    netip.Addr
}

// begin builds a world, and checks at the end of the test that it is taken
// down without a trace.
func begin(t *testing.T, sc scene) *world {
	t.Helper()
	home, err := os.MkdirTemp(dir, "w")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	w := &world{t: t, ctx: ctx}
	sc.Lab.V6, sc.Lab.RunDir = true, home
	w.Lab = must(netlab.New(sc.Lab))(t)
	t.Cleanup(func() { check(t, w.Lab.Close()); os.RemoveAll(home) })
	w.server = w.Servers[0]
	for _, b := range w.Servers {
		s := must(servers.Start(b.Do, nil))(t)
		w.servers = append(w.servers, s)
		t.Cleanup(s.Close)
	}
	w.egress = must(spill.NewNode(binary, home, "egress-1", w.Egress[0]))(t)
	w.host = must(spill.NewNode(binary, home, "host-1", w.Host))(t)
	w.pair = sc.Pair
	w.pair.Egress, w.pair.Host, w.pair.Lab = w.egress, w.host, w.Lab
	if sc.Claim != nil {
		w.pair.Claim = sc.Claim(w.Lab)
	}
	check(t, w.pair.Configure())
	t.Cleanup(w.end)
	check(t, w.egress.Start(ctx))
	check(t, w.host.Start(ctx))
	w.out4, w.out6 = w.outside()
	if sc.Attach {
		for i := range w.Tasks {
			w.attach(i, "web")
		}
	}
	return w
}

// end stops both machines. The logs of a test that failed are shown.
func (w *world) end() {
	err := errors.Join(w.host.Stop(), w.egress.Stop())
	if err != nil {
		w.t.Errorf("stop: %v", err)
	}
	if w.t.Failed() {
		w.t.Logf("log of the host:\n%s\nlog of the egress:\n%s", w.host.LogTail(), w.egress.LogTail())
	}
}

// outside returns the addresses of the first endpoint.
func (w *world) outside() (v4, v6 netip.Addr) {
	w.t.Helper()
	eps := w.endpoints()
	if len(eps) == 0 || len(eps[0].Addresses) == 0 {
		w.t.Fatalf("no endpoint with an address: %+v", eps)
	}
	a := eps[0].Addresses[0]
	return a.V4, a.V6
}

func (w *world) endpoints() []api.EndpointStatus {
	w.t.Helper()
	var eps []api.EndpointStatus
	check(w.t, w.egress.Query(w.ctx, &eps, "endpoint", "list"))
	slices.SortFunc(eps, func(a, b api.EndpointStatus) int { return a.Addresses[0].V4.Compare(b.Addresses[0].V4) })
	return eps
}

// attach attaches task i (from 0) as task-(i+1).
func (w *world) attach(i int, service string, more ...string) api.Task {
	w.t.Helper()
	var task api.Task
	args := []string{"attach", "--netns", w.Tasks[i].NS.Path(), "--service", service, "--name", taskName(i)}
	check(w.t, w.host.Query(w.ctx, &task, append(args, more...)...))
	w.tasks = append(w.tasks, task)
	return task
}

func taskName(i int) string { return "task-" + strconv.Itoa(i+1) }

// task returns task i as its host tells it now, counters included.
func (w *world) task(i int) api.Task {
	w.t.Helper()
	var list []api.Task
	check(w.t, w.host.Query(w.ctx, &list, "task", "list"))
	for _, t := range list {
		if t.ID == taskName(i) {
			return t
		}
	}
	w.t.Fatalf("the host does not know %s: %+v", taskName(i), list)
	return api.Task{}
}

// addrs4and6 are the addresses of a box in both families, for loops.
func families(b *netlab.Box) []netip.Addr { return []netip.Addr{b.Addr4, b.Addr6} }

// judge is the path of a program that judges from outside.
func judge(t *testing.T, name string) string {
	t.Helper()
	for _, d := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	t.Fatalf("the judge %q is not installed: scripts/install-judges does it", name)
	return ""
}

// exec runs a program in a box and returns all it printed.
func (w *world) exec(box *netlab.Box, within time.Duration, name string, args ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, within)
	defer cancel()
	cmd := exec.CommandContext(ctx, judge(w.t, name), args...)
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := box.Do(cmd.Start); err != nil {
		w.t.Fatalf("%s in %s: %v", name, box.Name, err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("%s in %s did not end within %v", name, box.Name, within)
	}
	return out.String(), err
}

// root runs a program in a box and fails the test if it fails.
func (w *world) root(box *netlab.Box, name string, args ...string) string {
	w.t.Helper()
	out, err := w.exec(box, 10*time.Second, name, args...)
	if err != nil {
		w.t.Fatalf("%s %s in %s: %v\n%s", name, strings.Join(args, " "), box.Name, err, out)
	}
	return out
}

// capture captures until the test ends.
func (w *world) capture(box *netlab.Box, link string) *netlab.Capture {
	w.t.Helper()
	c := must(box.Capture(link))(w.t)
	w.t.Cleanup(func() { check(w.t, c.Stop()) })
	return c
}

// check fails the test at once if err is one.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// must unwraps a result: must(f())(t).
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits until f returns nil.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	end := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func only(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
