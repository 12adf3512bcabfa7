//go:build netns && linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/lab/servers"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// TestK1_FlowsOutliveAKilledRole: connections that were open before a role was
// killed go on when its supervisor has started it again, without a reset.
func TestK1_FlowsOutliveAKilledRole(t *testing.T) {
	for _, sc := range []struct{ role, isolate string }{{"egress", "none"}, {"egress", "netns"}, {"host", "none"}} {
		t.Run(sc.role+", isolate "+sc.isolate, func(t *testing.T) {
			w := begin(t, scene{Pair: spill.Pair{Isolate: sc.isolate}, Attach: true})
			node := w.egress
			if sc.role == "host" {
				node = w.host
			}
			var open []net.Conn
			for range 10 {
				for _, a := range families(w.server) {
					c := must(w.dial(w.Tasks[0], "tcp", at(a, servers.EchoPort), 2*time.Minute))(t)
					defer c.Close()
					check(t, say(c, "before"))
					open = append(open, c)
				}
			}
			before := w.outsidePorts()
			time.Sleep(2 * time.Second) // K1 speaks of flows older than that
			st := must(node.Role(w.ctx, sc.role))(t)
			killed := time.Now()
			check(t, syscall.Kill(st.PID, syscall.SIGKILL))
			lost := 0
			var gap time.Duration
			for i, c := range open {
				check(t, c.SetDeadline(time.Now().Add(60*time.Second)))
				if err := say(c, "after"); err != nil {
					lost++
					t.Errorf("connection %d to %v: %v", i, c.RemoteAddr(), err)
				}
				if i == 0 {
					gap = time.Since(killed)
				}
			}
			t.Logf("the first connection goes on after %v, all after %v; %d of %d lost", gap.Round(time.Millisecond),
				time.Since(killed).Round(time.Millisecond), lost, len(open))
			if gap > 10*time.Second {
				t.Errorf("the way was closed for %v: the peers waited for WireGuard's own timers", gap)
			}
			check(t, w.reach(w.Tasks[0]))
			eventually(t, 10*time.Second, func() error {
				st, err := node.Role(w.ctx, sc.role)
				if err != nil || st.Restarts != 1 || !st.Ready {
					return fmt.Errorf("started again %d times, ready: %v, %w; want once and ready", st.Restarts, st.Ready, err)
				}
				return nil
			})
			after := w.outsidePorts()
			for inner, outside := range before {
				if after[inner] != outside {
					t.Errorf("%v was %v outside and is %v now", inner, outside, after[inner])
				}
			}
		})
	}
}

// outsidePorts is the outside tuple of every TCP flow by its inner one.
func (w *world) outsidePorts() map[string]netip.AddrPort {
	out := make(map[string]netip.AddrPort)
	for _, f := range w.flows() {
		if f.Protocol == "tcp" && f.Remote.Port() == servers.EchoPort && f.State != "" && f.Bytes.Out > 0 {
			out[fmt.Sprint(f.Inner, f.Remote)] = f.Outside
		}
	}
	return out
}

// TestK1_BulkOutlivesAKilledEgress: a download goes through while the egress
// is killed under it, byte for byte.
func TestK1_BulkOutlivesAKilledEgress(t *testing.T) {
	w := begin(t, scene{Attach: true})
	check(t, w.reach(w.Tasks[0]))
	time.Sleep(2 * time.Second) // K1 speaks of what is older than that
	done := make(chan error, 1)
	begun := time.Now()
	go func() {
		_, err := w.move(w.Tasks[0], w.server.Addr4, "get", 1<<30, 2*time.Minute)
		done <- err
	}()
	time.Sleep(time.Second)
	st := must(w.egress.Role(w.ctx, "egress"))(t)
	check(t, syscall.Kill(st.PID, syscall.SIGKILL))
	select {
	case err := <-done:
		t.Fatalf("the download was over before the kill: %v", err)
	default:
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("1 GB in %v with a kill in it", time.Since(begun).Round(time.Millisecond))
}
