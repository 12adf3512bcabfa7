package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Block is an inner prefix lent to a host, one per family. A family that the
// endpoint address does not have is zero.
type Block struct {
	V4 netip.Prefix `json:"v4,omitzero"`
	V6 netip.Prefix `json:"v6,omitzero"`
}

// Prefixes are the block's valid prefixes, IPv4 first.
func (b Block) Prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{b.V4, b.V6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// Endpoint is the block's first usable address of each family: it belongs to
// the endpoint, never to a task.
func (b Block) Endpoint() []netip.Addr {
	var out []netip.Addr
	for _, p := range b.Prefixes() {
		out = append(out, addrAt(p, 1))
	}
	return out
}

// PairBlocks makes blocks of a flat list of prefixes: the first IPv4 prefix
// goes with the first IPv6 prefix, and so on.
func PairBlocks(prefixes []netip.Prefix) []Block {
	var out []Block
	n4, n6 := 0, 0
	at := func(i int) *Block {
		for len(out) <= i {
			out = append(out, Block{})
		}
		return &out[i]
	}
	for _, p := range prefixes {
		if p.Addr().Is4() {
			at(n4).V4 = p
			n4++
		} else {
			at(n6).V6 = p
			n6++
		}
	}
	return out
}

// BlockSpec is what a machine needs for its tasks on one endpoint address.
type BlockSpec struct {
	Endpoint string // id
	Index    int    // which address of the endpoint
	Machine  string // the host
	Pools    []netip.Prefix
	// V4 and V6 say which families the endpoint address has.
	V4, V6 bool
	// Count is the number of blocks. Zero means 1.
	Count int
}

// Blocks returns the blocks of a machine for one endpoint address: those it
// had before, as far as they still lie in the pools, and new ones for the
// rest. A new block's place follows from its names alone, so that two
// machines which read the same configuration agree on it.
func (t *Tx) Blocks(spec BlockSpec) ([]Block, error) {
	out := make([]Block, 0, max(spec.Count, 1))
	for number := range max(spec.Count, 1) {
		b, err := t.block(&spec, number)
		if err != nil {
			return nil, err
		}
		out = append(out, b.Block)
	}
	return out, nil
}

func (t *Tx) block(spec *BlockSpec, number int) (*blockRecord, error) {
	var rec *blockRecord
	for _, b := range t.st.Blocks {
		if b.Endpoint == spec.Endpoint && b.Index == spec.Index && b.Machine == spec.Machine && b.Number == number {
			rec = b
		}
	}
	if rec == nil {
		rec = &blockRecord{Endpoint: spec.Endpoint, Index: spec.Index, Machine: spec.Machine, Number: number}
		t.st.Blocks = append(t.st.Blocks, rec)
	}
	rec.Rests = 0
	t.touched[rec] = true
	start := placeOf(rec)
	var err error
	if rec.V4, err = t.place(spec.Pools, rec.V4, spec.V4, true, start); err != nil {
		return nil, err
	}
	if rec.V6, err = t.place(spec.Pools, rec.V6, spec.V6, false, start); err != nil {
		return nil, err
	}
	return rec, nil
}

// placeOf is where the search for a free block starts.
func placeOf(b *blockRecord) uint64 {
	h := sha256.Sum256(fmt.Appendf(nil, "block %s %d %s %d", b.Endpoint, b.Index, b.Machine, b.Number))
	return binary.BigEndian.Uint64(h[:8])
}

// place keeps old if it is wanted and still lies in a pool, else finds a free
// block of the family.
func (t *Tx) place(pools []netip.Prefix, old netip.Prefix, want, v4 bool, start uint64) (netip.Prefix, error) {
	if !want {
		return netip.Prefix{}, nil
	}
	var mine []netip.Prefix
	total, smallest := uint64(0), uint64(0)
	for _, p := range pools {
		if p.Addr().Is4() == v4 {
			mine = append(mine, p)
			total += slots(p)
		}
	}
	for _, p := range mine {
		if old.IsValid() && p.Overlaps(old) && p.Bits() <= old.Bits() {
			return old, nil
		}
	}
	family := "IPv6"
	if v4 {
		family = "IPv4"
	}
	if total == 0 {
		return netip.Prefix{}, fmt.Errorf("%w: inner_pool has no %s prefix, but an endpoint has an %s address; add one", ErrFull, family, family)
	}
	// The same number in both families, as far as the smaller pool allows.
	smallest = min(total, defaultSlots)
	used := t.st.blocksInUse()
	for i := range total {
		n := (start%smallest + i) % total
		b := nthBlock(mine, n)
		if !used[b] {
			return b, nil
		}
	}
	text := make([]string, len(mine))
	for i, p := range mine {
		text[i] = p.String()
	}
	return netip.Prefix{}, fmt.Errorf("inner pool %s: %w: all %d blocks are lent or rest; add a prefix to inner_pool, or have fewer pairs of host and endpoint address",
		strings.Join(text, ", "), ErrFull, total)
}

// defaultSlots is how many blocks the default IPv4 pool holds.
const defaultSlots = 1 << (BlockBits4 - 12)

func nthBlock(pools []netip.Prefix, n uint64) netip.Prefix {
	for _, p := range pools {
		if n < slots(p) {
			return blockAt(p, n)
		}
		n -= slots(p)
	}
	return netip.Prefix{} // not reached: n is below the sum
}

// clientsMachine owns the blocks from which stock WireGuard clients get their
// single addresses. No machine can be called so.
const clientsMachine = "*"

// Client returns the single addresses (/32 and /128) of a stock WireGuard
// client on one endpoint address, from blocks that clients share and that are
// added on demand.
func (t *Tx) Client(name string, spec BlockSpec) (Block, error) {
	spec.Machine, spec.Count = clientsMachine, 1
	c := t.st.Clients[name]
	if c == nil || c.Endpoint != spec.Endpoint || c.Index != spec.Index {
		c = &clientRecord{Endpoint: spec.Endpoint, Index: spec.Index, Offset: -1}
		t.st.Clients[name] = c
	}
	c.Rests = 0
	t.touched[c] = true
	if c.Offset < 0 {
		c.Offset = t.clientOffset(spec.Endpoint, spec.Index)
	}
	b, err := t.block(&spec, c.Offset/TasksPerBlock)
	if err != nil {
		return Block{}, err
	}
	var out Block
	n := uint64(c.Offset%TasksPerBlock) + 2
	if b.V4.IsValid() {
		out.V4 = netip.PrefixFrom(addrAt(b.V4, n), 32)
	}
	if b.V6.IsValid() {
		out.V6 = netip.PrefixFrom(addrAt(b.V6, n), 128)
	}
	return out, nil
}

// clientOffset is the lowest place among the clients of an endpoint address
// that nobody has and that does not rest.
func (t *Tx) clientOffset(endpoint string, index int) int {
	var taken []int
	for _, c := range t.st.Clients {
		if c.Endpoint == endpoint && c.Index == index && c.Offset >= 0 {
			taken = append(taken, c.Offset)
		}
	}
	slices.Sort(taken)
	n := 0
	for _, o := range taken {
		if o == n {
			n++
		}
	}
	return n
}
