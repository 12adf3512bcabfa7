package tunnel

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// u128 is an IPv6 address as a number.
type u128 struct{ hi, lo uint64 }

func (a u128) less(b u128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func compare128(a, b u128) int {
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo))
}

type range4 struct {
	lo, hi uint32 // first and last address
	p      *peerState
}

type range6 struct {
	lo, hi u128
	p      *peerState
}

// table maps addresses to peers. Because two peers' prefixes never overlap it
// is a sorted list of disjoint ranges: a lookup is one binary search, without
// an allocation or a lock. It is immutable: a change makes a new one.
type table struct {
	v4 []range4
	v6 []range6
	// peers in the order of SetPeers, and by the number their tags hold.
	peers  []*peerState
	bySlot map[uint32]*peerState
}

// prefixRange returns the first and last address of p as numbers. IPv4 is in
// the low 32 bits.
func prefixRange(p netip.Prefix) (lo, hi u128) {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		n := binary.BigEndian.Uint32(b[:])
		mask := uint32(uint64(1)<<(32-p.Bits()) - 1)
		return u128{lo: uint64(n &^ mask)}, u128{lo: uint64(n | mask)}
	}
	b := p.Addr().As16()
	n := u128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
	var mask u128
	if host := 128 - p.Bits(); host >= 64 {
		mask = u128{uint64(1)<<(host-64) - 1, ^uint64(0)} // a shift by 64 gives 0
	} else {
		mask = u128{0, uint64(1)<<host - 1}
	}
	return u128{n.hi &^ mask.hi, n.lo &^ mask.lo}, u128{n.hi | mask.hi, n.lo | mask.lo}
}

// newTable builds the table of peers with the prefixes of each that keep
// accepts; a nil keep accepts all. It fails with ErrOverlap.
func newTable(peers []*peerState, keep func(*peerState, netip.Prefix) bool) (*table, error) {
	t := &table{peers: peers, bySlot: make(map[uint32]*peerState, len(peers))}
	for _, p := range peers {
		t.bySlot[p.slot] = p
		for _, pre := range p.want.AllowedIPs {
			if keep != nil && !keep(p, pre) {
				continue
			}
			lo, hi := prefixRange(pre)
			if pre.Addr().Is4() {
				t.v4 = append(t.v4, range4{uint32(lo.lo), uint32(hi.lo), p})
			} else {
				t.v6 = append(t.v6, range6{lo, hi, p})
			}
		}
	}
	slices.SortFunc(t.v4, func(a, b range4) int { return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(b.hi, a.hi)) })
	slices.SortFunc(t.v6, func(a, b range6) int { return cmp.Or(compare128(a.lo, b.lo), compare128(b.hi, a.hi)) })
	var clash4 [2]range4
	t.v4, clash4 = disjoint(t.v4,
		func(a, b range4) bool { return b.lo <= a.hi && a.p == b.p },
		func(a, b range4) bool { return b.lo <= a.hi })
	if clash4[0].p != nil {
		return nil, fmt.Errorf("%w: %s and %s, at %s", ErrOverlap, clash4[0].p, clash4[1].p, addr4(clash4[1].lo))
	}
	var clash6 [2]range6
	t.v6, clash6 = disjoint(t.v6,
		func(a, b range6) bool { return !a.hi.less(b.lo) && a.p == b.p },
		func(a, b range6) bool { return !a.hi.less(b.lo) })
	if clash6[0].p != nil {
		return nil, fmt.Errorf("%w: %s and %s, at %s", ErrOverlap, clash6[0].p, clash6[1].p, addr6(clash6[1].lo))
	}
	return t, nil
}

// disjoint drops every range that lies inside an earlier one of the same peer
// (of two prefixes that overlap, one holds the other) and returns the first
// two that overlap otherwise.
func disjoint[R any](rs []R, inside, overlap func(a, b R) bool) (out []R, clash [2]R) {
	out = rs[:0]
	for _, r := range rs {
		if len(out) > 0 {
			last := out[len(out)-1]
			if inside(last, r) {
				continue
			}
			if overlap(last, r) {
				return nil, [2]R{last, r}
			}
		}
		out = append(out, r)
	}
	return out, clash
}

func addr4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func addr6(n u128) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (t *table) lookup4(a uint32) *peerState {
	lo, hi := 0, len(t.v4)
	for lo < hi { // the first range that ends at or behind a
		m := int(uint(lo+hi) >> 1)
		if t.v4[m].hi < a {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo < len(t.v4) && t.v4[lo].lo <= a {
		return t.v4[lo].p
	}
	return nil
}

func (t *table) lookup6(a u128) *peerState {
	lo, hi := 0, len(t.v6)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if t.v6[m].hi.less(a) {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo < len(t.v6) && !a.less(t.v6[lo].lo) {
		return t.v6[lo].p
	}
	return nil
}

// destination returns the peer that an IP packet goes to, nil if there is
// none or if it is not an IP packet.
func (t *table) destination(b []byte) *peerState {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return t.lookup4(binary.BigEndian.Uint32(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return t.lookup6(u128{binary.BigEndian.Uint64(b[24:32]), binary.BigEndian.Uint64(b[32:40])})
	}
	return nil
}

// source returns the peer that may send from an IP packet's source address.
func (t *table) source(b []byte) *peerState {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return t.lookup4(binary.BigEndian.Uint32(b[12:16]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return t.lookup6(u128{binary.BigEndian.Uint64(b[8:16]), binary.BigEndian.Uint64(b[16:24])})
	}
	return nil
}

// foreign reports whether any address of pre belongs to a peer other than p.
func (t *table) foreign(p *peerState, pre netip.Prefix) bool {
	lo, hi := prefixRange(pre)
	if pre.Addr().Is4() {
		i, _ := slices.BinarySearchFunc(t.v4, uint32(lo.lo), func(r range4, a uint32) int { return cmp.Compare(r.hi, a) })
		for ; i < len(t.v4) && uint64(t.v4[i].lo) <= hi.lo; i++ {
			if t.v4[i].p != p {
				return true
			}
		}
		return false
	}
	i, _ := slices.BinarySearchFunc(t.v6, lo, func(r range6, a u128) int { return compare128(r.hi, a) })
	for ; i < len(t.v6) && !hi.less(t.v6[i].lo); i++ {
		if t.v6[i].p != p {
			return true
		}
	}
	return false
}
