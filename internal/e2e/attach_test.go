//go:build netns && linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
)

// TestS40_AttachIsQuick attaches and detaches fresh namespaces, each with a
// primary interface of its own.
func TestS40_AttachIsQuick(t *testing.T) {
	w := begin(t, scene{})
	const rounds = 100
	var whole, inside, off []time.Duration
	for i := range rounds {
		path := filepath.Join(w.Dir, "fresh")
		ns := must(hostnet.CreateNS(path))(t)
		check(t, w.Host.Conn.AddVeth("fresh0", "eth0", ns, 1500))
		check(t, w.Host.Conn.SetUp("fresh0"))
		var task api.Task
		begun := time.Now()
		check(t, w.host.Query(w.ctx, &task, "attach", "--netns", path, "--service", "web", "--name", "fresh"))
		whole = append(whole, time.Since(begun))
		inside = append(inside, time.Duration(task.Steps["total"])*time.Microsecond)
		if i == 0 {
			t.Logf("steps of the first, in µs: %v", task.Steps)
		}
		begun = time.Now()
		_, err := w.host.Run(w.ctx, "detach", "fresh")
		check(t, err)
		off = append(off, time.Since(begun))
		check(t, ns.Close())
		check(t, hostnet.DeleteNS(path))
		check(t, w.Host.Conn.DeleteLink("fresh0"))
	}
	for _, l := range []struct {
		name string
		d    []time.Duration
	}{{"attach, as the host measures it", inside}, {"attach, with the command", whole}, {"detach, with the command", off}} {
		slices.Sort(l.d)
		p50, p99 := l.d[rounds/2], l.d[rounds*99/100]
		t.Logf("%s: p50 %v, p99 %v, most %v", l.name, p50.Round(10*time.Microsecond), p99.Round(10*time.Microsecond), l.d[rounds-1].Round(10*time.Microsecond))
		// Bounds that even a busy machine keeps: what grows with the number
		// of earlier tasks, or waits for somebody, breaks them.
		if p50 > time.Second || p99 > 5*time.Second {
			t.Errorf("%s: p50 %v, p99 %v", l.name, p50, p99)
		}
	}
}

// TestZ41_TasksComeAndGoWithoutATrace: attaching what is not there, attaching
// twice, and a namespace that is deleted without a detach.
func TestZ41_TasksComeAndGoWithoutATrace(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{Tasks: 2}})

	_, err := w.host.Run(w.ctx, "attach", "--netns", "/run/netns/no-such-thing", "--service", "web", "--name", "ghost")
	wantError(t, err, "/run/netns/no-such-thing", "no such file")
	plain := filepath.Join(w.Dir, "plain-file")
	check(t, os.WriteFile(plain, nil, 0o600))
	_, err = w.host.Run(w.ctx, "attach", "--netns", plain, "--service", "web", "--name", "ghost")
	wantError(t, err, plain)
	_, err = w.host.Run(w.ctx, "attach", "--netns", w.Tasks[0].NS.Path(), "--service", "no-such-service", "--name", "ghost")
	wantError(t, err, "no-such-service")
	w.wantTasks(0)
	w.clean(w.Tasks[0])

	w.attach(0, "web")
	_, err = w.host.Run(w.ctx, "attach", "--netns", w.Tasks[1].NS.Path(), "--service", "web", "--name", taskName(0))
	wantError(t, err, taskName(0), "attached already")
	w.clean(w.Tasks[1])
	_, err = w.host.Run(w.ctx, "attach", "--netns", w.Tasks[0].NS.Path(), "--service", "web", "--name", "second")
	wantError(t, err, taskName(0), "attached already")
	w.wantTasks(1)
	// The refused second attach has not harmed the first.
	check(t, w.reach(w.Tasks[0]))
	_, err = w.host.Run(w.ctx, "detach", taskName(0))
	check(t, err)
	w.clean(w.Tasks[0])
	_, err = w.host.Run(w.ctx, "detach", taskName(0))
	wantError(t, err, taskName(0))

	// A namespace that goes away takes its task along.
	path := filepath.Join(w.Dir, "doomed")
	ns := must(hostnet.CreateNS(path))(t)
	check(t, w.Host.Conn.AddVeth("doomed0", "eth0", ns, 1500))
	check(t, w.Host.Conn.SetUp("doomed0"))
	var task api.Task
	check(t, w.host.Query(w.ctx, &task, "attach", "--netns", path, "--service", "web", "--name", "doomed"))
	w.wantTasks(1)
	check(t, ns.Close())
	check(t, hostnet.DeleteNS(path))
	eventually(t, 30*time.Second, func() error {
		var list []api.Task
		if err := w.host.Query(w.ctx, &list, "task", "list"); err != nil || len(list) > 0 {
			return fmt.Errorf("tasks %v, %v", list, err)
		}
		_, err := w.Host.Conn.Link("doomed0")
		if err == nil {
			return fmt.Errorf("the namespace of the task still lives: doomed0 is there")
		}
		return nil
	})
	again := w.attach(0, "web")
	if again.Inner[0] == task.Inner[0] {
		t.Errorf("inner address %v is given away again at once", task.Inner[0])
	}
	check(t, w.reach(w.Tasks[0]))
}

// wantTasks wants n tasks in the list.
func (w *world) wantTasks(n int) {
	w.t.Helper()
	var list []api.Task
	check(w.t, w.host.Query(w.ctx, &list, "task", "list"))
	if len(list) != n {
		w.t.Fatalf("%d tasks, want %d: %+v", len(list), n, list)
	}
}

// wantError wants an error of one line that names all the words.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// clean wants a task's namespace as it was before attach.
func (w *world) clean(box *netlab.Box) {
	w.t.Helper()
	for what, args := range map[string][]string{
		"links": {"ip", "-br", "link"}, "rules": {"ip", "rule"}, "IPv6 rules": {"ip", "-6", "rule"},
		"routes": {"ip", "route", "show", "table", "all"}, "IPv6 routes": {"ip", "-6", "route", "show", "table", "all"},
		"nftables": {"nft", "list", "tables"},
	} {
		out := w.root(box, args[0], args[1:]...)
		for line := range strings.Lines(out) {
			for _, trace := range []string{"spill", "sw-", "535", "lookup 54", "table 54", "proto 83", "unreachable default"} {
				if strings.Contains(line, trace) && !strings.Contains(line, "table local") {
					w.t.Errorf("%s of %s: left behind: %s", what, box.Name, line)
					break
				}
			}
		}
	}
}
