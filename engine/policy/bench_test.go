package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

// benchInput returns groups of rules for scattered single addresses, ports and
// some networks, IPv4 and IPv6 alike.
func benchInput(rules, groups int) Input {
	in := Input{Groups: make([]api.SecurityGroup, groups)}
	for i := range in.Groups {
		g := &in.Groups[i]
		g.Account, g.Name = "a", fmt.Sprintf("sg-%d", i)
		for j := range rules {
			n := i*rules + j
			a := netip.AddrFrom4([4]byte{10, byte(i), byte(j), byte(n * 7)})
			bits := 32
			if n%5 == 4 {
				bits = 24
			}
			g.Egress = append(g.Egress, api.Rule{Protocol: "tcp", FromPort: 5000 + n, ToPort: 5000 + 2*n, CIDR: netip.PrefixFrom(a, bits)})
			b := [16]byte{0: 0xfd, 13: byte(i), 14: byte(j), 15: byte(n * 7)}
			g.Egress = append(g.Egress, api.Rule{Protocol: "tcp", FromPort: 5000 + n, ToPort: 5000 + 2*n, CIDR: netip.PrefixFrom(netip.AddrFrom16(b), 128)})
		}
	}
	return in
}

// BenchmarkVerdict compares 1 rule with 300 (60 in each of 5 groups), for
// packets that the last rule allows and for packets that no rule allows.
func BenchmarkVerdict(b *testing.B) {
	for _, size := range []struct{ rules, groups int }{{1, 1}, {60, 5}, {60, 16}} {
		in := benchInput(size.rules, size.groups)
		s := compile(b, in)
		last := in.Groups[size.groups-1].Egress
		hit4, hit6 := last[len(last)-2], last[len(last)-1]
		for _, c := range []struct {
			name string
			pkts []*packet.Parsed
		}{
			{"hit4", []*packet.Parsed{first(6, hit4.CIDR.Addr().String(), uint16(hit4.FromPort))}},
			{"hit6", []*packet.Parsed{first(6, hit6.CIDR.Addr().String(), uint16(hit6.FromPort))}},
			{"missport", []*packet.Parsed{first(6, hit4.CIDR.Addr().String(), 1)}},
			{"missaddr4", []*packet.Parsed{first(6, "10.2.30.254", 5000)}},
			{"missaddr6", []*packet.Parsed{first(6, "fd00::2:1eff", 5000)}},
			{"scattered", scattered()},
		} {
			b.Run(fmt.Sprintf("rules=%d/%s", size.rules*size.groups, c.name), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					s.Verdict(c.pkts[i%len(c.pkts)])
				}
			})
		}
	}
}

// scattered returns packets all over the rules' networks, so that no branch
// can be learnt.
func scattered() []*packet.Parsed {
	w := newWorld(9)
	pkts := make([]*packet.Parsed, 1009)
	for i := range pkts {
		a := netip.AddrFrom4([4]byte{10, byte(w.IntN(6)), byte(w.IntN(60)), byte(w.IntN(256))})
		pkts[i] = first(6, a.String(), uint16(5000+w.IntN(600)))
	}
	return pkts
}

func BenchmarkCompile(b *testing.B) {
	in := benchInput(60, 5)
	b.ReportAllocs()
	for b.Loop() {
		compile(b, in)
	}
}
