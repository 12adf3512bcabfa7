package flowtable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"unsafe"
)

// Errors of Open for callers that branch on them.
var (
	// ErrLayout means that the file is not a table of this layout and size: it
	// was made by another version, with another MaxFlows, or is damaged. Remove
	// the file to begin with an empty table.
	ErrLayout = errors.New("not a flow table of this layout and size")
	// ErrLocked means that another process has the table open.
	ErrLocked = errors.New("another process has the flow table open")
	// ErrInsecure means that the file is not a regular file of mode 0600 that
	// belongs to this user: its secret may be known.
	ErrInsecure = errors.New("flow table file is not a regular file with mode 0600 of this user")
	// ErrNotMemory is what CheckDir says of a directory on a disk.
	ErrNotMemory = errors.New("directory is not on a tmpfs")
)

const (
	headerSize = 4096
	magic      = 0x31574f4c46535753 // "SWSFLOW1"
	// layoutVersion changes with the meaning of any byte of the file.
	layoutVersion = 1

	entrySize  = int(unsafe.Sizeof(Entry{}))
	bucketSize = int(unsafe.Sizeof(bucket{}))
)

// header is the first page of the memory, in little endian. magic is stored
// last, when the rest of a new file is there.
type header struct {
	Magic     uint64
	Version   uint32
	EntrySize uint32
	MaxFlows  uint64
	Buckets   uint64
	Created   int64    // Mono
	Boot      [16]byte // boot id of the kernel: times of another boot mean nothing
	Secret    secret
	Sum       uint64 // over all before it
}

func (h *header) encode() []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h) // fixed size: cannot fail
	p := b.Bytes()
	sum := fnv.New64a()
	sum.Write(p[:len(p)-8])
	binary.LittleEndian.PutUint64(p[len(p)-8:], sum.Sum64())
	return p
}

// decode reads a header and checks it against maxFlows, or takes over the
// header's if that is 0.
func (h *header) decode(p []byte, maxFlows int) error {
	if len(p) < headerSize {
		return fmt.Errorf("%w: %d bytes", ErrLayout, len(p))
	}
	if err := binary.Read(bytes.NewReader(p), binary.LittleEndian, h); err != nil {
		return fmt.Errorf("%w: %v", ErrLayout, err)
	}
	switch {
	case h.Magic != magic:
		return fmt.Errorf("%w: wrong magic", ErrLayout)
	case h.Version != layoutVersion || int(h.EntrySize) != entrySize:
		return fmt.Errorf("%w: layout %d, this is layout %d", ErrLayout, h.Version, layoutVersion)
	case h.MaxFlows != uint64(maxFlows):
		return fmt.Errorf("%w: made for %d flows, not %d", ErrLayout, h.MaxFlows, maxFlows)
	case h.Buckets != uint64(bucketsFor(maxFlows)):
		return fmt.Errorf("%w: %d buckets", ErrLayout, h.Buckets)
	case !bytes.Equal(h.encode(), p[:binary.Size(h)]):
		return fmt.Errorf("%w: wrong sum of the header", ErrLayout)
	}
	return nil
}

// sizeFor is the memory of a table, in bytes.
func sizeFor(maxFlows int) int {
	return headerSize + maxFlows*entrySize + bucketsFor(maxFlows)*bucketSize
}

// carve returns the entries and buckets in mem, which has sizeFor(maxFlows)
// bytes and starts on a cache line.
func carve(mem []byte, maxFlows int) ([]Entry, []bucket) {
	at := headerSize + maxFlows*entrySize
	return unsafe.Slice((*Entry)(unsafe.Pointer(&mem[headerSize])), maxFlows),
		unsafe.Slice((*bucket)(unsafe.Pointer(&mem[at])), bucketsFor(maxFlows))
}
