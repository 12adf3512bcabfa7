package policy

import "sort"

// table answers for one address family and one protocol. Segment i of the
// address space reaches from starts[i] to just before starts[i+1], the last
// one to the end; starts[0] is 0. All of a segment's addresses are matched by
// the same rules. Immutable after newTable.
type table struct {
	starts []u128
	spans  []span // by segment

	// buckets narrow the search: bucket b knows that the segment of an address
	// with (address-base)>>shift == b is at least buckets[b] and at most
	// buckets[b+1]. Clustered rules, the usual case, leave one or two
	// candidates; the worst case is a binary search over all.
	base    u128
	shift   uint8
	buckets []uint32

	// The port ranges of all segments, one behind the other. Equal ones are
	// stored once.
	ports []portRange
}

// span is a segment's part of table.ports: at least one range, the first of
// which starts at 0.
type span struct{ off, n uint32 }

// portRange reaches from start to just before the next range's start.
type portRange struct {
	start uint16
	rule  uint32 // NoRule if nothing allows it
}

// maxBuckets bounds the memory of one table's buckets to 16 KiB.
const maxBuckets = 4096

// index builds the buckets of t.
func (t *table) index() {
	n := len(t.starts)
	if n < 3 {
		return
	}
	t.base = t.starts[1]
	width := t.starts[n-1].sub(t.base)
	want := 4
	for want < 4*n && want < maxBuckets {
		want *= 2
	}
	for width.shr(t.shift) >= uint64(want) || t.shift < 64 && width.hi>>t.shift != 0 {
		t.shift++
	}
	count := int(width.shr(t.shift)) + 1
	t.buckets = make([]uint32, count+1)
	seg := 1
	for b := range count {
		for seg+1 < n && t.starts[seg+1].sub(t.base).shr(t.shift) < uint64(b) {
			seg++
		}
		// Now starts[seg+1] is in bucket b or later: an address of bucket b is
		// in segment seg or later.
		t.buckets[b] = uint32(seg)
	}
	t.buckets[count] = uint32(n - 1)
	// The upper bound of bucket b is the segment that the first address of
	// bucket b+1 may be in; buckets[b+1] as computed above is a segment whose
	// successor starts in b+1 or later, so that nothing of b lies behind it.
}

// segment returns the segment of a.
func (t *table) segment(a u128) int {
	n := len(t.starts)
	if n < 3 {
		if n == 2 && !a.less(t.starts[1]) {
			return 1
		}
		return 0
	}
	if a.less(t.base) {
		return 0
	}
	if !a.less(t.starts[n-1]) {
		return n - 1
	}
	b := a.sub(t.base).shr(t.shift)
	lo, hi := int(t.buckets[b]), int(t.buckets[b+1])
	for lo < hi {
		mid := int(uint(lo+hi+1) >> 1)
		if a.less(t.starts[mid]) {
			hi = mid - 1
		} else {
			lo = mid
		}
	}
	return lo
}

// lookup returns the rule that allows key at address a, or NoRule.
func (t *table) lookup(a u128, key uint16) uint32 {
	s := t.spans[t.segment(a)]
	ranges := t.ports[s.off : s.off+s.n]
	lo, hi := 0, len(ranges)-1
	for lo < hi {
		mid := int(uint(lo+hi+1) >> 1)
		if key < ranges[mid].start {
			hi = mid - 1
		} else {
			lo = mid
		}
	}
	return ranges[lo].rule
}

// paint returns the port ranges of a segment that the given rules cover. rules
// are in ascending order and the first that covers a port names it, so that
// the answer does not depend on how the set was compiled.
func paint(dst []portRange, rules []uint32, keys []keyRange) []portRange {
	cuts := []int{0}
	for _, r := range rules {
		k := keys[r]
		cuts = append(cuts, int(k.lo))
		if k.hi < 0xffff {
			cuts = append(cuts, int(k.hi)+1)
		}
	}
	sort.Ints(cuts)
	n := 1
	for _, c := range cuts[1:] {
		if c != cuts[n-1] {
			cuts[n] = c
			n++
		}
	}
	cuts = cuts[:n]
	owner := make([]uint32, n)
	next := make([]int, n+1) // next[i] is the first cut from i on without owner
	for i := range next {
		next[i] = i
	}
	for i := range owner {
		owner[i] = NoRule
	}
	find := func(i int) int {
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	for _, r := range rules {
		k := keys[r]
		for i := find(sort.SearchInts(cuts, int(k.lo))); i < n && cuts[i] <= int(k.hi); i = find(i) {
			owner[i] = r
			next[i] = i + 1
		}
	}
	from := len(dst)
	for i, c := range cuts {
		if len(dst) > from && dst[len(dst)-1].rule == owner[i] {
			continue
		}
		dst = append(dst, portRange{start: uint16(c), rule: owner[i]})
	}
	return dst
}
