//go:build netns && linux

package e2e

import (
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// anyPolicy lets service web leave for anywhere.
const anyPolicy = `security_groups:
  - { name: sg-any, egress: [ { protocol: all, cidrs: [0.0.0.0/0, "::/0"] } ] }
connectors:
  - { name: any, subnets: [subnet-a], security_groups: [sg-any] }
services:
  - { name: web, egress: VPC, connector: any }
`

// sharedPolicy has three services: web and api name the same groups in another
// order through different connectors, batch names only one of them.
const sharedPolicy = `security_groups:
  - { name: sg-one, egress: [ { protocol: all, cidrs: [0.0.0.0/0] } ] }
  - { name: sg-two, egress: [ { protocol: all, cidrs: ["::/0"] } ] }
connectors:
  - { name: first, subnets: [subnet-a], security_groups: [sg-one, sg-two] }
  - { name: second, subnets: [subnet-a], security_groups: [sg-two, sg-one] }
  - { name: third, subnets: [subnet-a], security_groups: [sg-one] }
services:
  - { name: web, egress: VPC, connector: first }
  - { name: api, egress: VPC, connector: second }
  - { name: batch, egress: VPC, connector: third }
`

func pairWith(policy string) spill.Pair { return spill.Pair{Policy: policy} }

// TestS33_S34_TasksShareOneAddress: five tasks of two services talk at once;
// the servers see one address of each family. A third service with another set
// of groups has an address of its own.
func TestS33_S34_TasksShareOneAddress(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{Tasks: 6}, Pair: pairWith(sharedPolicy)})
	if n := len(w.endpoints()); n != 2 {
		t.Fatalf("%d endpoints, want one for {sg-one, sg-two} and one for {sg-one}", n)
	}
	for i := range 5 {
		w.attach(i, []string{"web", "api"}[i%2])
	}
	shared := w.tasks[0].Outside
	for _, task := range w.tasks {
		if !slices.Equal(task.Outside, shared) {
			t.Errorf("%s of service %s leaves as %v, others as %v", task.ID, task.Service, task.Outside, shared)
		}
	}
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 5 {
				if err := w.reach(w.Tasks[i]); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	seen := w.servers[0].SeenAny()
	slices.SortFunc(seen, netip.Addr.Compare)
	if !slices.Equal(seen, shared) {
		t.Errorf("the servers saw %v, want %v", seen, shared)
	}

	batch := w.attach(5, "batch")
	if slices.Contains(shared, batch.Outside[0]) {
		t.Errorf("another set of groups leaves as %v too", batch.Outside)
	}
	check(t, w.echo(w.Tasks[5], "tcp", w.server.Addr4))
	if seen := w.servers[0].Seen("tcp-echo"); !slices.Contains(seen, batch.Outside[0]) {
		t.Errorf("the server saw %v, want %v among them", seen, batch.Outside[0])
	}
	// sg-one allows IPv4 only (S13).
	if err := w.refused(w.Tasks[5], at(w.server.Addr6, 80)); err != nil {
		t.Errorf("IPv6 without a rule for it: %v", err)
	}
}

// is4 tells whether an Ethernet frame carries IPv4.
func is4(frame []byte) bool { return len(frame) > 14 && frame[12] == 8 && frame[13] == 0 }

// udpPorts are the ports of an Ethernet frame that carries a UDP datagram with
// this payload.
func udpPorts(frame []byte, payload string) (src, dst uint16, ok bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	u, is := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !is || string(u.Payload) != payload {
		return 0, 0, false
	}
	return uint16(u.SrcPort), uint16(u.DstPort), true
}
