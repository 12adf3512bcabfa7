package flowtable

import "unsafe"

// region is the memory a table lives in.
type region interface {
	// bytes is the whole region. It starts on a cache line.
	bytes() []byte
	// fresh says that all bytes are 0.
	fresh() bool
	close() error
}

// heapRegion is Go memory: for systems without a mapping here, and for the
// race detector, which does not see mapped memory.
type heapRegion struct {
	mem []byte
}

func newHeapRegion(size int) *heapRegion {
	const line = 64
	mem := make([]byte, size+line)
	skip := -int(uintptr(unsafe.Pointer(&mem[0]))) & (line - 1)
	return &heapRegion{mem: mem[skip : skip+size : skip+size]}
}

func (r *heapRegion) bytes() []byte { return r.mem }
func (r *heapRegion) fresh() bool   { return true }
func (r *heapRegion) close() error  { return nil }
