//go:build netns && linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/spill"
)

func itoa(i int) string { return strconv.Itoa(i) }

// inventory is everything in a namespace that spillway could have made:
// interfaces, addresses, rules, routes, nftables and forwarding.
func (w *world) inventory(box *netlab.Box) string {
	w.t.Helper()
	var out []string
	for _, args := range [][]string{
		{"ip", "-br", "link"}, {"ip", "-br", "addr"}, {"ip", "rule"}, {"ip", "-6", "rule"},
		{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"nft", "list", "ruleset"},
	} {
		text := w.root(box, args[0], args[1:]...)
		for line := range strings.Lines(text) {
			// Neither state nor order nor what ages is anybody's doing.
			for _, f := range []string{"UNKNOWN", "UP", "expires"} {
				line, _, _ = strings.Cut(line, f+" ")
			}
			out = append(out, args[len(args)-1]+": "+strings.Join(strings.Fields(line), " "))
		}
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		out = append(out, key+": "+must(box.NS.Sysctl(key))(w.t))
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// TestEnd_LeavesNothing: after detach and a clean end, every namespace is what
// it was, and no process, file in run_dir or flow table is left.
func TestEnd_LeavesNothing(t *testing.T) {
	for _, isolate := range []string{"none", "netns"} {
		t.Run(isolate, func(t *testing.T) {
			w := begin(t, scene{Lab: netlab.Config{Tasks: 2}, Pair: spill.Pair{Isolate: isolate}})
			check(t, w.egress.Stop())
			check(t, w.host.Stop())
			boxes := append([]*netlab.Box{w.Egress[0], w.Host}, w.Tasks...)
			before := make(map[string]string)
			for _, b := range boxes {
				before[b.Name] = w.inventory(b)
			}
			check(t, w.egress.Start(w.ctx))
			check(t, w.host.Start(w.ctx))
			for i := range w.Tasks {
				w.attach(i, "web")
				check(t, w.reach(w.Tasks[i]))
			}
			if w.inventory(w.Tasks[0]) == before["task1"] || w.inventory(w.Egress[0]) == before["egress1"] {
				t.Fatal("the inventory does not show what spillway makes")
			}
			pids := append(must(w.egress.PIDs(w.ctx))(t), must(w.host.PIDs(w.ctx))(t)...)
			for i := range w.Tasks {
				_, err := w.host.Run(w.ctx, "detach", taskName(i))
				check(t, err)
			}
			check(t, w.host.Stop())
			check(t, w.egress.Stop())
			for _, b := range boxes {
				if after := w.inventory(b); after != before[b.Name] {
					t.Errorf("%s is not as it was:\n%s", b.Name, diff(before[b.Name], after))
				}
			}
			for _, pid := range pids {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
					t.Errorf("process %d still runs", pid)
				}
			}
			for _, n := range []*spill.Node{w.egress, w.host} {
				left := must(filepath.Glob(filepath.Join(n.Dir, "run", "*.sock")))(t)
				spaces := must(filepath.Glob(filepath.Join(n.Dir, "run", "subnets", "*")))(t)
				if len(left)+len(spaces) > 0 {
					t.Errorf("left in run_dir of %s: %v %v", n.Name, left, spaces)
				}
			}
		})
	}
}

// TestCleanup_RemovesWhatACrashLeft: after everything was killed, `spillway
// cleanup` makes every namespace what it was before.
func TestCleanup_RemovesWhatACrashLeft(t *testing.T) {
	w := begin(t, scene{})
	check(t, w.egress.Stop())
	check(t, w.host.Stop())
	boxes := []*netlab.Box{w.Egress[0], w.Host, w.Tasks[0]}
	before := make(map[string]string)
	for _, b := range boxes {
		before[b.Name] = w.inventory(b)
	}
	check(t, w.egress.Start(w.ctx))
	check(t, w.host.Start(w.ctx))
	w.attach(0, "web")
	check(t, w.reach(w.Tasks[0]))
	// While it runs, cleanup refuses.
	for _, n := range []*spill.Node{w.egress, w.host} {
		cleanup := func() (string, error) {
			cmd := exec.CommandContext(w.ctx, binary, "cleanup", "--config", n.Config())
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			check(t, n.Box.Do(cmd.Start))
			err := cmd.Wait()
			return out.String(), err
		}
		if out, err := cleanup(); err == nil || !strings.Contains(out, "runs here") {
			t.Errorf("cleanup beside a running %s: %v\n%s", n.Name, err, out)
		}
		check(t, n.Kill(w.ctx))
		if out, err := cleanup(); err != nil {
			t.Errorf("cleanup of %s: %v\n%s", n.Name, err, out)
		}
	}
	for _, b := range boxes {
		if after := w.inventory(b); after != before[b.Name] {
			t.Errorf("%s is not as it was:\n%s", b.Name, diff(before[b.Name], after))
		}
	}
}

// diff lists lines that only one side has.
func diff(a, b string) string {
	count := make(map[string]int)
	for line := range strings.Lines(a) {
		count[strings.TrimSpace(line)]--
	}
	for line := range strings.Lines(b) {
		count[strings.TrimSpace(line)]++
	}
	var out []string
	for line, n := range count {
		switch {
		case n < 0:
			out = append(out, "- "+line)
		case n > 0:
			out = append(out, "+ "+line)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
