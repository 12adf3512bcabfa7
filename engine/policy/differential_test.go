package policy

import (
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

func TestAgainstLinearTwin(t *testing.T) {
	rounds, packets := 120, 1000
	if testing.Short() {
		rounds = 40
	}
	var p packet.Parsed
	allowed, denied := 0, 0
	for seed := range rounds {
		w := newWorld(uint64(seed))
		in := w.input()
		s := compile(t, in)
		for range packets {
			w.packet(&p)
			want := linear(in, &p)
			got, r := s.Verdict(&p)
			if got != want || (r == packet.OK) != (want != NoRule) || r != packet.OK && r != packet.DeniedByPolicy {
				t.Fatalf("seed %d: v%d %v proto %d port %d type %d code %d: rule %d (%v), the twin says %d",
					seed, p.Version, netip.AddrFrom16(p.Dst), p.Proto, p.DstPort, p.Type, p.Code, got, r, want)
			}
			if got == NoRule {
				denied++
			} else {
				allowed++
			}
			if p.Transport {
				dst, key := netip.AddrFrom16(p.Dst), p.DstPort
				if p.Version == 6 && dst.Is4In6() {
					continue // Allows takes mapped addresses for IPv4
				}
				if p.Proto == 1 || p.Proto == 58 {
					key = ICMPKey(p.Type, p.Code)
				}
				if again, _ := s.Allows(dst, p.Proto, key); again != got {
					t.Fatalf("seed %d: Allows says rule %d, Verdict %d", seed, again, got)
				}
			}
		}
	}
	if allowed < rounds*packets/20 || denied < rounds*packets/20 {
		t.Errorf("%d allowed and %d denied: the test hardly tests one of them", allowed, denied)
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(77), uint64(0))
	f.Fuzz(func(t *testing.T, rules, packets uint64) {
		w := newWorld(rules)
		in := w.input()
		s := compile(t, in)
		v := newWorld(packets)
		v.addrs, v.ports = w.addrs, w.ports
		var p packet.Parsed
		for range 50 {
			v.packet(&p)
			want := linear(in, &p)
			if got, _ := s.Verdict(&p); got != want {
				t.Fatalf("v%d %v proto %d port %d: rule %d, the twin says %d", p.Version, netip.AddrFrom16(p.Dst), p.Proto, p.DstPort, got, want)
			}
		}
	})
}

func FuzzCompile(f *testing.F) {
	f.Add("tcp", 1, 2, "10.0.0.1/8", "", "", "text", "10.0.0.9", uint8(6), uint16(1))
	f.Add("icmp", -1, -1, "::/0", "", "", "", "::1", uint8(1), uint16(0))
	f.Add("-1", 0, 0, "", "pl", "", "", "10.0.0.0", uint8(0), uint16(0))
	f.Add("255", 0, 0, "", "", "g", "", "10.0.0.0", uint8(255), uint16(0))
	f.Fuzz(func(t *testing.T, proto string, from, to int, cidr, list, ref, text, dst string, pktProto uint8, key uint16) {
		r := api.Rule{Protocol: proto, FromPort: from, ToPort: to, PrefixList: list, Group: ref, Description: text}
		r.CIDR, _ = netip.ParsePrefix(cidr)
		g := group("sg", r)
		in := Input{
			Groups:  []api.SecurityGroup{g},
			Lists:   []api.PrefixList{{Account: "a", Name: "pl", Entries: []netip.Prefix{pfx("10.0.0.0/9"), pfx("fd00::/64")}}},
			Members: func(string) []netip.Prefix { return []netip.Prefix{pfx("10.0.0.0/10"), pfx("fd00::/65")} },
		}
		s, err := Compile(in)
		if verr := Validate(g, in.Lists...); (verr == nil) != (err == nil) {
			t.Fatalf("Compile: %v, but Validate: %v", err, verr)
		}
		if err != nil {
			if s != nil {
				t.Fatal("an error and a Set")
			}
			return
		}
		a, err := netip.ParseAddr(dst)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			return
		}
		p := first(pktProto, a.String(), key)
		want := linear(in, p)
		if got, _ := s.Verdict(p); got != want {
			t.Fatalf("%+v for %v: rule %d, the twin says %d", r, p, got, want)
		}
	})
}
