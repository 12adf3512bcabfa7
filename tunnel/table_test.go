package tunnel

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The table against the obvious reference: the first prefix that contains the
// address.
func TestTableAgainstReference(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		var peers []*peerState
		for i := range 1 + rng.IntN(20) {
			p := &peerState{slot: uint32(i + 1)}
			for range rng.IntN(6) {
				// A small world, so that things touch and overlap.
				if rng.IntN(2) == 0 {
					a := netip.AddrFrom4([4]byte{10, byte(rng.IntN(2)), byte(rng.IntN(256)), byte(rng.IntN(256))})
					p.want.AllowedIPs = append(p.want.AllowedIPs, netip.PrefixFrom(a, 16+rng.IntN(17)).Masked())
				} else {
					a := [16]byte{0: 0xfd, 1: byte(rng.IntN(2)), 7: byte(rng.IntN(256)), 8: byte(rng.IntN(256)), 15: byte(rng.IntN(4))}
					p.want.AllowedIPs = append(p.want.AllowedIPs, netip.PrefixFrom(netip.AddrFrom16(a), 12+rng.IntN(117)).Masked())
				}
			}
			peers = append(peers, p)
		}
		// Keep what does not clash, as the reference sees it.
		var kept []*peerState
		clash := false
		for _, p := range peers {
			ok := true
			for _, q := range kept {
				for _, a := range p.want.AllowedIPs {
					for _, b := range q.want.AllowedIPs {
						ok = ok && !a.Overlaps(b)
					}
				}
			}
			if ok {
				kept = append(kept, p)
			} else {
				clash = true
			}
		}
		if _, err := newTable(peers, nil); (err != nil) != clash {
			t.Fatalf("round %d: overlap is %v, error %v", round, clash, err)
		}
		tab, err := newTable(kept, nil)
		if err != nil {
			t.Fatal(err)
		}
		owner := func(a netip.Addr) *peerState {
			for _, p := range kept {
				for _, pre := range p.want.AllowedIPs {
					if pre.Contains(a) {
						return p
					}
				}
			}
			return nil
		}
		check := func(a netip.Addr) {
			var pkt []byte
			if a.Is4() {
				pkt = make([]byte, 20)
				pkt[0] = 0x45
				copy(pkt[12:], a.AsSlice())
				copy(pkt[16:], a.AsSlice())
			} else {
				pkt = make([]byte, 40)
				pkt[0] = 0x60
				copy(pkt[8:], a.AsSlice())
				copy(pkt[24:], a.AsSlice())
			}
			if want := owner(a); tab.source(pkt) != want || tab.destination(pkt) != want {
				t.Fatalf("round %d: %v belongs to %v, table says %v and %v", round, a, want, tab.source(pkt), tab.destination(pkt))
			}
		}
		for _, p := range peers {
			for _, pre := range p.want.AllowedIPs {
				lo, hi := prefixRange(pre)
				for _, n := range []u128{lo, hi, before(lo), after(hi)} {
					if pre.Addr().Is4() {
						check(addr4(uint32(n.lo)))
					} else {
						check(addr6(n))
					}
				}
				for _, q := range kept {
					want := false
					for _, other := range kept {
						for _, b := range other.want.AllowedIPs {
							want = want || other != q && b.Overlaps(pre)
						}
					}
					if got := tab.foreign(q, pre); got != want {
						t.Fatalf("round %d: foreign(%v) = %v, want %v", round, pre, got, want)
					}
				}
			}
		}
	}
}

func before(n u128) u128 {
	if n.lo == 0 {
		n.hi--
	}
	n.lo--
	return n
}

func after(n u128) u128 {
	if n.lo++; n.lo == 0 {
		n.hi++
	}
	return n
}

func TestTableWholeInternet(t *testing.T) {
	p := &peerState{want: Peer{AllowedIPs: prefixes("0.0.0.0/0", "::/0", "10.0.0.0/8")}}
	tab, err := newTable([]*peerState{p}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "10.1.2.3", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} {
		b := netip.MustParseAddr(a)
		got := (*peerState)(nil)
		if b.Is4() {
			as4 := b.As4()
			got = tab.lookup4(binary.BigEndian.Uint32(as4[:]))
		} else {
			as16 := b.As16()
			got = tab.lookup6(u128{binary.BigEndian.Uint64(as16[:8]), binary.BigEndian.Uint64(as16[8:])})
		}
		if got != p {
			t.Errorf("%s belongs to nobody", a)
		}
	}
	if tab.source(nil) != nil || tab.destination([]byte{0x45}) != nil || tab.source(make([]byte, 60)) != nil {
		t.Error("what is no IP packet has a peer")
	}
}

func BenchmarkLookup(b *testing.B) {
	p := make([]*peerState, 1000)
	for i := range p {
		p[i] = &peerState{want: Peer{AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 112, byte(i >> 8), byte(i)}), 32)}}}
	}
	tab, err := newTable(p, nil)
	if err != nil {
		b.Fatal(err)
	}
	pkt := udp("100.112.1.200", "10.0.0.1", nil)
	b.ReportAllocs()
	for b.Loop() {
		if tab.source(pkt) == nil {
			b.Fatal("not found")
		}
	}
}
