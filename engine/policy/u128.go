package policy

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// The address families, as array indices.
const (
	v4 = 0
	v6 = 1
)

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return v4
	}
	return v6
}

// u128 is an address as a number, both families in the same form (IPv4 in the
// lowest 32 bits), so that one search serves both.
type u128 struct{ hi, lo uint64 }

// numberOf returns the bytes of a parsed address as a number. The caller knows
// the family, and tables of the families are never mixed.
func numberOf(family int, a *[16]byte) u128 {
	if family == v4 {
		return u128{lo: uint64(binary.BigEndian.Uint32(a[12:16]))}
	}
	return u128{hi: binary.BigEndian.Uint64(a[0:8]), lo: binary.BigEndian.Uint64(a[8:16])}
}

func (a u128) less(b u128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func (a u128) sub(b u128) u128 {
	lo, borrow := bits.Sub64(a.lo, b.lo, 0)
	hi, _ := bits.Sub64(a.hi, b.hi, borrow)
	return u128{hi, lo}
}

// next returns a+1, and whether it still is in the family.
func (a u128) next(family int) (u128, bool) {
	lo, carry := bits.Add64(a.lo, 1, 0)
	hi, over := bits.Add64(a.hi, 0, carry)
	n := u128{hi, lo}
	if family == v4 {
		return n, n.lo <= 0xffffffff
	}
	return n, over == 0
}

// shr returns the lowest 64 bits of a>>n, for n from 0 to 127.
func (a u128) shr(n uint8) uint64 {
	if n >= 64 {
		return a.hi >> (n & 63)
	}
	return a.lo>>n | a.hi<<1<<(63-n)
}

// bounds returns the first and the last address of p.
func bounds(p netip.Prefix) (first, last u128) {
	family := familyOf(p.Addr())
	b := p.Addr().As16()
	first = numberOf(family, &b)
	host := p.Addr().BitLen() - p.Bits()
	last = first
	switch {
	case host >= 128:
		last.hi, last.lo = ^uint64(0), ^uint64(0)
	case host >= 64:
		last.hi |= 1<<(host-64) - 1
		last.lo = ^uint64(0)
	default:
		last.lo |= 1<<host - 1
	}
	return first, last
}
