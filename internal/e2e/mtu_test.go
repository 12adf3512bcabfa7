//go:build netns && linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
)

// inner is the MTU inside the tunnel.
const inner = 1420

// TestM_PathMTU: what fits passes, what does not is fragmented or refused with
// the right size, in both directions and families; SYNs carry a clamped MSS.
func TestM_PathMTU(t *testing.T) {
	w := begin(t, scene{Lab: netlab.Config{NoOffloads: true}, Attach: true})
	task := w.Tasks[0]
	check(t, w.reach(task))
	ping := func(a netip.Addr, size int, df string) (string, error) {
		args := []string{"-n", "-c", "1", "-W", "3", "-s", fmt.Sprint(size), "-M", df, a.String()}
		return w.exec(task, 10*time.Second, "ping", args...)
	}
	t.Run("M1 what fits passes whole", func(t *testing.T) {
		for _, a := range families(w.server) {
			head := 28
			if a.Is6() {
				head = 48
			}
			if out, err := ping(a, inner-head, "do"); err != nil {
				t.Errorf("%v, %d bytes: %v\n%s", a, inner, err, out)
			}
			if out, err := ping(a, inner-head+1, "do"); err == nil || !strings.Contains(out, "too long") && !strings.Contains(out, "mtu") {
				t.Errorf("%v, %d bytes without fragmentation: %v, want the interface's MTU\n%s", a, inner+1, err, out)
			}
		}
	})
	t.Run("F10 fragments are refused and counted", func(t *testing.T) {
		// Declared: fragments are recognised and not carried yet. Nothing of
		// them leaves, and whole packets are not disturbed.
		seen := w.capture(w.server, netlab.ServerLink)
		mark := strings.Repeat("FRAGMENT-0123456", 250)
		for _, a := range families(w.server) {
			c := must(w.dial(task, "udp", at(a, servers.EchoPort), 5*time.Second))(t)
			defer c.Close()
			must(c.Write([]byte(mark)))(t)
		}
		w.drops(func() map[string]uint64 { return w.task(0).Drops }, "fragment-refused", 6)
		check(t, w.reach(task))
		if n := seen.Count(netlab.Match{Has: []byte(mark[:16])}); n > 0 {
			t.Errorf("%d fragments reached the subnet", n)
		}
	})
	t.Run("M5 the MSS is clamped both ways", func(t *testing.T) {
		onSubnet := w.capture(w.server, netlab.ServerLink)
		onTask := w.capture(task, "spill0")
		for _, a := range families(w.server) {
			check(t, w.echo(task, "tcp", a))
		}
		for where, frames := range map[string][]netlab.Frame{"server": onSubnet.Frames(), "task": onTask.Frames()} {
			n := 0
			for _, f := range frames {
				mss, six, ok := synMSS(f.Data, where == "server")
				if !ok || f.Outgoing {
					continue
				}
				n++
				want := uint16(inner - 40)
				if six {
					want = inner - 60
				}
				if mss > want {
					t.Errorf("a SYN that the %s gets (IPv6: %v) says MSS %d, want at most %d", where, six, mss, want)
				}
			}
			if n < 2 {
				t.Errorf("%d SYNs at the %s, want one of each family", n, where)
			}
		}
	})
	t.Run("M2 the subnet is told what fits", func(t *testing.T) {
		// A server that answers with 1500-byte packets that must not be
		// fragmented learns the path's MTU, and then its packets fit.
		seen := w.capture(w.server, netlab.ServerLink)
		ports := w.openFlows(task, "path mtu")
		big := strings.Repeat("x", 1400)
		for i, a := range families(w.server) {
			dst := netip.AddrPortFrom([]netip.Addr{w.out4, w.out6}[i], ports[i])
			s := must(raw(w.server, netlab.ServerLink))(t)
			defer s.close()
			mac := must(w.Egress[0].Conn.Link(netlab.EgressLink))(t).MAC
			payload := big + strings.Repeat("y", 1500-1400-28)
			if a.Is6() {
				payload = big + strings.Repeat("y", 1500-1400-48)
			}
			p := udpPacket(netip.AddrPortFrom(a, servers.EchoPort), dst, payload)
			if a.Is4() {
				p[6] |= 0x40 // DF
				p[10], p[11] = 0, 0
				sum := headerSum(p[:20])
				p[10], p[11] = byte(sum>>8), byte(sum)
			}
			check(t, s.to(mac, p))
			eventually(t, 5*time.Second, func() error {
				for _, f := range seen.Frames() {
					if mtu, ok := tooBig(f.Data); ok && is4(f.Data) == a.Is4() {
						if mtu != inner {
							t.Errorf("%v is told an MTU of %d, want %d", a, mtu, inner)
						}
						return nil
					}
				}
				return fmt.Errorf("%v is told nothing", a)
			})
		}
	})
}

// headerSum is the checksum of an IPv4 header (RFC 1071).
func headerSum(h []byte) uint16 {
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// synMSS reads the MSS of a SYN; ethernet says that b begins with a frame
// header, else with the IP header.
func synMSS(b []byte, ethernet bool) (mss uint16, six, ok bool) {
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if !ethernet {
		if len(b) == 0 {
			return 0, false, false
		}
		first = layers.LayerTypeIPv4
		if b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
	}
	p := gopacket.NewPacket(b, first, gopacket.Default)
	h, is := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if !is || !h.SYN {
		return 0, false, false
	}
	for _, o := range h.Options {
		if o.OptionType == layers.TCPOptionKindMSS && len(o.OptionData) == 2 {
			return uint16(o.OptionData[0])<<8 | uint16(o.OptionData[1]), p.Layer(layers.LayerTypeIPv6) != nil, true
		}
	}
	return 0, false, false
}

// tooBig reads the next-hop MTU of an ICMP "fragmentation needed" (RFC 1191
// section 4) or a Packet Too Big (RFC 4443 section 3.2).
func tooBig(frame []byte) (mtu int, ok bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if i, is := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); is && i.TypeCode == layers.CreateICMPv4TypeCode(3, 4) {
		return int(i.Seq), true // the low half of the second word
	}
	if i, is := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); is && i.TypeCode.Type() == layers.ICMPv6TypePacketTooBig && len(i.Payload) >= 4 {
		return int(i.Payload[2])<<8 | int(i.Payload[3]), true
	}
	return 0, false
}
