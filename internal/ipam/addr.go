package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// Range is a run of addresses of one family, both ends included.
type Range struct {
	From, To netip.Addr
}

// ParseRange reads "10.0.1.50-10.0.1.59" or a single address. Zones and
// IPv4-mapped IPv6 addresses are refused, and so is a range that ends before
// it starts or that mixes families.
func ParseRange(s string) (Range, error) {
	from, to, isRange := strings.Cut(s, "-")
	a, err := parseAddr(strings.TrimSpace(from))
	if err != nil {
		return Range{}, err
	}
	if !isRange {
		return Range{From: a, To: a}, nil
	}
	b, err := parseAddr(strings.TrimSpace(to))
	switch {
	case err != nil:
		return Range{}, err
	case a.Is4() != b.Is4():
		return Range{}, fmt.Errorf("range %q mixes IPv4 and IPv6", s)
	case b.Less(a):
		return Range{}, fmt.Errorf("range %q ends before it starts", s)
	}
	return Range{From: a, To: b}, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("address %q has a zone", s)
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("address %q is an IPv4 address inside IPv6; write it as IPv4", s)
	}
	return a, nil
}

// Contains says whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.From.BitLen() == a.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// Overlaps says whether the two ranges share an address.
func (r Range) Overlaps(o Range) bool {
	return r.From.BitLen() == o.From.BitLen() && !r.To.Less(o.From) && !o.To.Less(r.From)
}

// Size is the number of addresses, at most math.MaxUint64.
func (r Range) Size() uint64 {
	fh, fl := halves(r.From)
	th, tl := halves(r.To)
	lo, borrow := tl-fl, uint64(0)
	if tl < fl {
		borrow = 1
	}
	if th-fh-borrow != 0 || lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return lo + 1
}

// String is the range as ParseRange reads it.
func (r Range) String() string {
	if r.From == r.To {
		return r.From.String()
	}
	return r.From.String() + "-" + r.To.String()
}

// Last is the highest address of p.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes: always right
	return a
}

// Reserved says why an endpoint may not use address a of the subnet prefix p,
// or "" if it may. A subnet keeps its first four addresses (network, router,
// resolver, one spare) and its last one, as the private networks of the big
// clouds do. Prefixes of fewer than sixteen addresses keep only the first and
// the last, and prefixes of one or two addresses keep none (RFC 3021).
func Reserved(p netip.Prefix, a netip.Addr) string {
	free := a.BitLen() - p.Bits() // bits of the host part
	if !p.Contains(a) || free <= 1 {
		return ""
	}
	n := offset(p, a)
	switch {
	case n == 0 && a.Is4():
		return "the network address"
	case n == 0:
		return "the subnet-router anycast address" // RFC 4291 2.6.1
	case a == Last(p) && a.Is4():
		return "the broadcast address"
	case free < 4:
		return ""
	case a == Last(p):
		return "the last address"
	case n < 4:
		return "one of the first four addresses"
	}
	return ""
}

// halves returns the address as two numbers, IPv4 in the low one.
func halves(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// offset is the distance of a from the start of p, at most math.MaxUint64.
func offset(p netip.Prefix, a netip.Addr) uint64 {
	n := Range{From: p.Masked().Addr(), To: a}.Size()
	if n == math.MaxUint64 {
		return n
	}
	return n - 1
}

// addrAt is the n-th address of p, counted from zero. The caller makes sure
// that p is that large.
func addrAt(p netip.Prefix, n uint64) netip.Addr {
	if p.Addr().Is4() {
		b := p.Masked().Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
		return netip.AddrFrom4(b)
	}
	b := p.Masked().Addr().As16()
	lo := binary.BigEndian.Uint64(b[8:])
	if lo+n < lo {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	}
	binary.BigEndian.PutUint64(b[8:], lo+n)
	return netip.AddrFrom16(b)
}

// Sizes of a block. An IPv4 block holds 1,021 tasks; an IPv6 block follows
// RFC 4291 and RFC 7421 with 64 bits for the host part.
const (
	BlockBits4 = 22
	BlockBits6 = 64
)

// TasksPerBlock is how many tasks one block holds: its addresses without the
// network address, the endpoint's own and the last one.
const TasksPerBlock = 1<<(32-BlockBits4) - 3

func blockBits(pool netip.Prefix) int {
	if pool.Addr().Is4() {
		return BlockBits4
	}
	return BlockBits6
}

// slots is how many blocks fit into pool, at most 2^32.
func slots(pool netip.Prefix) uint64 {
	return 1 << min(32, blockBits(pool)-pool.Bits())
}

// blockAt is the n-th block of pool.
func blockAt(pool netip.Prefix, n uint64) netip.Prefix {
	bits := blockBits(pool)
	if pool.Addr().Is4() {
		b := pool.Masked().Addr().As4()
		v := binary.BigEndian.Uint32(b[:]) + uint32(n)<<(32-bits)
		binary.BigEndian.PutUint32(b[:], v)
		return netip.PrefixFrom(netip.AddrFrom4(b), bits)
	}
	b := pool.Masked().Addr().As16()
	v := binary.BigEndian.Uint64(b[:8]) + n // a block is 64 bits: the upper half counts
	binary.BigEndian.PutUint64(b[:8], v)
	return netip.PrefixFrom(netip.AddrFrom16(b), bits)
}

// ErrPool is wrapped by the errors of CheckPools.
var ErrPool = errors.New("inner pool")

// CheckPools says what is wrong with a list of inner pools: too small for a
// block, overlapping, or not a plain prefix.
func CheckPools(pools []netip.Prefix) error {
	for i, p := range pools {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked():
			return fmt.Errorf("%w %s: not a prefix with its host bits zero", ErrPool, p)
		case p.Bits() > blockBits(p):
			return fmt.Errorf("%w %s: smaller than one block (/%d)", ErrPool, p, blockBits(p))
		}
		for _, o := range pools[:i] {
			if o.Overlaps(p) {
				return fmt.Errorf("%w %s: overlaps %s", ErrPool, p, o)
			}
		}
	}
	return nil
}
