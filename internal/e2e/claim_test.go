//go:build netns && linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// TestClaimExec_CloudCarriesOnlyWhatWasClaimed: on a fabric that binds
// addresses to machines, the claim's program is what makes traffic flow; the
// underlay's firewall passes only what the host starts.
func TestClaimExec_CloudCarriesOnlyWhatWasClaimed(t *testing.T) {
	for _, isolate := range []string{"none", "netns"} {
		t.Run("claimed, isolate "+isolate, func(t *testing.T) {
			w := begin(t, scene{
				Lab: netlab.Config{Profile: netlab.Cloud}, Attach: true, Pair: spill.Pair{Isolate: isolate},
				Claim: func(l *netlab.Lab) string { return "exec:" + must(l.ClaimProgram(0))(t) },
			})
			eventually(t, 10*time.Second, func() error { return w.reach(w.Tasks[0]) })
			for _, verb := range []string{"put", "get"} {
				if _, err := w.move(w.Tasks[0], w.server.Addr4, verb, 16<<20, time.Minute); err != nil {
					t.Error(err)
				}
			}
			// The customer's fabric takes the address away: silence. It
			// gives it back: traffic.
			check(t, w.Lab.Unbind(0, w.out4))
			if err := w.silent(w.Tasks[0], at(w.server.Addr4, 7), 2*time.Second); err != nil {
				t.Errorf("without the address: %v", err)
			}
			check(t, w.Lab.Bind(0, w.out4))
			eventually(t, 10*time.Second, func() error { return w.echo(w.Tasks[0], "tcp", w.server.Addr4) })
		})
	}
	t.Run("not claimed", func(t *testing.T) {
		w := begin(t, scene{Lab: netlab.Config{Profile: netlab.Cloud}, Attach: true, Pair: spill.Pair{Claim: "none"}})
		for _, a := range families(w.server) {
			if c, err := w.dial(w.Tasks[0], "tcp", at(a, 80), 2*time.Second); err == nil {
				c.Close()
				t.Errorf("%v is reached without a claim", a)
			}
		}
		if n := must(w.Lab.FabricDrops())(t); n == 0 {
			t.Error("the fabric refused nothing: it was not tried")
		}
		check(t, w.Lab.Bind(0, w.out4))
		check(t, w.Lab.Bind(0, w.out6))
		eventually(t, 10*time.Second, func() error { return w.reach(w.Tasks[0]) })
	})
	t.Run("release at the end", func(t *testing.T) {
		w := begin(t, scene{
			Lab: netlab.Config{Profile: netlab.Cloud}, Attach: true,
			Claim: func(l *netlab.Lab) string { return "exec:" + must(l.ClaimProgram(0))(t) },
		})
		eventually(t, 10*time.Second, func() error { return w.reach(w.Tasks[0]) })
		bound := func() bool {
			for _, n := range must(w.Subnet.Conn.Neighs(netlab.SubnetBr))(t) {
				if n.Addr == w.out4 && n.Permanent {
					return true
				}
			}
			return false
		}
		if !bound() {
			t.Fatal("the address is not bound while the egress runs")
		}
		check(t, w.egress.Stop())
		if bound() {
			t.Error("the address is still bound after a clean end")
		}
	})
}

// TestClaimARP_TakesNothingThatSomebodyHas: an address that a neighbour
// answers for is not taken, and the machine says who has it.
func TestClaimARP_TakesNothingThatSomebodyHas(t *testing.T) {
	w := begin(t, scene{})
	check(t, w.egress.Stop())
	check(t, w.Servers[0].Conn.AddAddr(netlab.ServerLink, only(w.out4)))
	w.egress.Patience = 3 * time.Second
	err := w.egress.Start(w.ctx)
	if err == nil {
		t.Fatal("the egress is ready with an address that a server has")
	}
	wantError(t, err, w.out4.String())
	seen := w.capture(w.Subnet, netlab.SubnetBr)
	check(t, w.Servers[0].Conn.DelAddr(netlab.ServerLink, only(w.out4)))
	eventually(t, 20*time.Second, func() error {
		st, err := w.egress.Role(w.ctx, "egress")
		if err != nil || !st.Ready {
			return fmt.Errorf("%+v: %w", st, err)
		}
		return nil
	})
	// Neighbours are told (RFC 5227 section 2.3).
	check(t, seen.Wait(netlab.Match{ARP: true, Src: only(w.out4), Dst: only(w.out4)}, 1, 5*time.Second))
	w.attach(0, "web")
	check(t, w.reach(w.Tasks[0]))
}
