//go:build netns && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

// TestJ1_J2_StunServerSeesMappingAndFiltering: coturn's judge of RFC 5780, as
// the application, against coturn's server with two addresses.
func TestJ1_J2_StunServerSeesMappingAndFiltering(t *testing.T) {
	policy := strings.Replace(anyPolicy, "0.0.0.0/0", "10.0.1.0/24", 1)
	w := begin(t, scene{Pair: pairWith(policy), Attach: true})
	cmd := exec.CommandContext(w.ctx, judge(t, "turnserver"), "-n", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp",
		"--log-file", "stdout", "--pidfile", w.Dir+"/turn.pid", "--db", w.Dir+"/turn.db",
		"-L", w.server.Addr4.String(), "-L", netlab.Resolver4.String())
	check(t, w.server.Do(cmd.Start))
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, 20*time.Second, func() error { return w.stun(netip.AddrPortFrom(w.server.Addr4, 3478)) })
	out, err := w.exec(w.Tasks[0], 40*time.Second, "turnutils_natdiscovery", "-m", "-f", w.server.Addr4.String())
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{"Endpoint Independent Mapping", "Address and Port Dependent Filtering"} {
		if !strings.Contains(out, want) {
			t.Errorf("the judge does not say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(out, w.out4.String()) {
		t.Errorf("the judge does not see %v:\n%s", w.out4, out)
	}
}

// stun asks a STUN server from its own box (RFC 8489 section 6.1), to see that
// it is there.
func (w *world) stun(server netip.AddrPort) error {
	c, err := w.dial(w.server, "udp", server.String(), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 500))
	return err
}

// answers counts what came from the endpoint's addresses: everything but the
// resolution of the addresses themselves.
func (w *world) answers(c *netlab.Capture) (n int, first string) {
	for _, f := range c.Frames() {
		p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
		if p.NetworkLayer() == nil {
			continue // ARP
		}
		src, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		if src != w.out4 && src != w.out6 {
			continue
		}
		if i, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && i.TypeCode.Type() == layers.ICMPv6TypeNeighborAdvertisement {
			continue
		}
		if n++; first == "" {
			first = p.String()
		}
	}
	return n, first
}

// TestS22_Z19_ScannersFindNothing: nmap looks at the endpoint from the subnet
// while tasks have flows open. It finds no port, no protocol, no system, and
// the capture holds not one answer.
func TestS22_Z19_ScannersFindNothing(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{Servers: 2}, Attach: true})
	// Live flows to the first server: their outside ports are scanned from
	// the second (U9).
	live := []string{"22", "53", "80", "443", "5001", "51820"}
	for _, a := range families(w.server) {
		for _, network := range []string{"tcp", "udp"} {
			c := must(w.dial(w.Tasks[0], network, at(a, servers.EchoPort), 4*time.Minute))(t)
			defer c.Close()
			check(t, say(c, "live"))
		}
	}
	flows := w.flows()
	if len(flows) < 4 {
		t.Fatalf("%d flows, want 4: %+v", len(flows), flows)
	}
	for _, f := range flows {
		live = append(live, fmt.Sprint(f.Outside.Port()))
	}
	ports := strings.Join(live, ",")
	judge := w.Servers[1]
	seen := w.capture(judge, netlab.ServerLink)
	quick := []string{"-Pn", "-n", "--max-retries", "1", "--initial-rtt-timeout", "150ms", "--max-rtt-timeout", "300ms", "--host-timeout", "90s", "--reason"}
	for _, scan := range []struct {
		name string
		args []string
	}{
		{"SYN and system", []string{"-sS", "-O", "-p", ports + ",1-200", w.out4.String()}},
		{"UDP", []string{"-sU", "-p", ports + ",67,123,161,500,4500,5351", w.out4.String()}},
		{"protocols", []string{"-sO", "-p", "1,2,4,6,17,41,47,50,51,58,89,132", w.out4.String()}},
		{"ACK", []string{"-sA", "-p", ports, w.out4.String()}},
		{"FIN", []string{"-sF", "-p", ports, w.out4.String()}},
		{"Xmas", []string{"-sX", "-p", ports, w.out4.String()}},
		{"null", []string{"-sN", "-p", ports, w.out4.String()}},
		{"SYN from port 53", []string{"-sS", "-g", "53", "-p", ports, w.out4.String()}},
		{"IPv6 SYN", []string{"-6", "-sS", "-p", ports, w.out6.String()}},
		{"IPv6 ACK", []string{"-6", "-sA", "-p", ports, w.out6.String()}},
		{"IPv6 UDP", []string{"-6", "-sU", "-p", ports, w.out6.String()}},
	} {
		begun := time.Now()
		out, err := w.exec(judge, 100*time.Second, "nmap", append(append([]string{}, quick...), scan.args...)...)
		if err != nil || !strings.Contains(out, "Nmap done: 1 IP address (1 host up)") {
			t.Errorf("%s: %v\n%s", scan.name, err, out)
			continue
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			// "22/tcp open ssh syn-ack": open|filtered says that nothing came.
			if len(f) > 1 && (f[1] == "open" || f[1] == "closed" || f[1] == "unfiltered") {
				t.Errorf("%s: nmap says %s", scan.name, line)
			}
		}
		if n, first := w.answers(seen); n > 0 {
			t.Fatalf("%s: %d answers came from the endpoint; the first:\n%s", scan.name, n, first)
		}
		t.Logf("%-18s nothing found in %v", scan.name, time.Since(begun).Round(100*time.Millisecond))
	}
	if n := seen.Count(netlab.Match{Dst: only(w.out4), IP: true}); n < 400 {
		t.Errorf("only %d probes were sent over IPv4: the scans did not happen", n)
	}
	w.drops(func() map[string]uint64 { return w.endpoints()[0].Drops }, "unsolicited", 200)
	// The scans have not hurt the flows.
	check(t, w.reach(w.Tasks[0]))
}

func (w *world) flows() []api.Flow {
	w.t.Helper()
	out := must(w.egress.Run(w.ctx, "flows", "--json"))(w.t)
	var list []api.Flow
	for line := range strings.Lines(string(out)) {
		var f api.Flow
		check(w.t, json.Unmarshal([]byte(line), &f))
		list = append(list, f)
	}
	return list
}

// TestZ23_OnlyTheEndpointsAddressesAreAnsweredFor asks the subnet for every
// address that endpoints may take.
func TestZ23_OnlyTheEndpointsAddressesAreAnsweredFor(t *testing.T) {
	for _, isolate := range []string{"none", "netns"} {
		t.Run(isolate, func(t *testing.T) {
			p := pairWith("")
			p.Isolate = isolate
			w := begin(t, scene{Pair: p})
			seen := w.capture(w.server, netlab.ServerLink)
			for i := range 10 {
				for _, a := range []netip.Addr{nth(netip.MustParseAddr("10.0.1.50"), i), nth(netip.MustParseAddr("fd00:1::50"), i)} {
					c := must(w.dial(w.server, "udp", at(a, 9), time.Second))(t)
					// The kernel may tell of an earlier failure: the question
					// was asked.
					_, _ = c.Write([]byte("who has it?"))
					c.Close()
				}
			}
			eventually(t, 5*time.Second, func() error {
				if got := answered(seen); len(got) < 2 {
					return fmt.Errorf("only %v are answered for", got)
				}
				return nil
			})
			time.Sleep(1500 * time.Millisecond) // the kernel's second question comes after a second
			got := answered(seen)
			for a := range got {
				if a != w.out4 && a != w.out6 {
					t.Errorf("%v is answered for: it is nobody's", a)
				}
			}
			if !got[w.out4] || !got[w.out6] {
				t.Errorf("answered for %v, want %v and %v", got, w.out4, w.out6)
			}
		})
	}
}

func nth(a netip.Addr, i int) netip.Addr {
	for range i {
		a = a.Next()
	}
	return a
}

// answered are the addresses from 50 to 59 that somebody answered for.
func answered(c *netlab.Capture) map[netip.Addr]bool {
	got := make(map[netip.Addr]bool)
	add := func(ip net.IP) {
		a, _ := netip.AddrFromSlice(ip)
		last := a.AsSlice()[a.BitLen()/8-1]
		if a.Is4() && last >= 50 && last <= 59 || a.Is6() && last >= 0x50 && last <= 0x59 {
			got[a] = true
		}
	}
	for _, f := range c.Frames() {
		if f.Outgoing {
			continue
		}
		p := gopacket.NewPacket(f.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
		if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok && a.Operation == layers.ARPReply {
			add(a.SourceProtAddress)
		}
		if n, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok {
			add(n.TargetAddress)
		}
	}
	return got
}
