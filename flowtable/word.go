//go:build !race

package flowtable

// put64 stores a word of an entry that nobody can find yet. Readers that still
// look at the entry's former flow see that its generation is over: between the
// end of that flow and this store lies the free list's mutex. A plain store is
// enough here; under the race detector it is an atomic one.
func put64(p *uint64, v uint64) { *p = v }

// put32 is put64 for half a word.
func put32(p *uint32, v uint32) { *p = v }
