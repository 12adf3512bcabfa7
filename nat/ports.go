package nat

import (
	"fmt"
	"math/bits"
	"unsafe"
)

// The range that outside ports and identifiers are chosen from. It is a
// constant and never shrinks: a reserved port is skipped, the others stay
// where they are, so a new reservation moves nobody's port.
const (
	// FirstPort is the lowest outside port.
	FirstPort = 1024
	// LastPort is the highest outside port.
	LastPort = 65535

	portCount = LastPort - FirstPort + 1 // 64,512 = 2^10 * 3^2 * 7
	portWords = portCount / 64

	_ = uint(0 - portCount%64) // the words of a portSet hold the range exactly
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// String returns the range as "51820" or "8000-8010".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// portSet has one bit for every port of the range, by index (port minus
// FirstPort). A set bit means: not to be chosen.
type portSet struct {
	words [portWords]uint64
	n     int // bits set
}

// setBytes is the size of a portSet.
const setBytes = int(unsafe.Sizeof(portSet{}))

func (s *portSet) has(i uint32) bool { return s.words[i/64]&(1<<(i%64)) != 0 }

func (s *portSet) set(i uint32) {
	if w, b := &s.words[i/64], uint64(1)<<(i%64); *w&b == 0 {
		*w |= b
		s.n++
	}
}

func (s *portSet) clear(i uint32) {
	if w, b := &s.words[i/64], uint64(1)<<(i%64); *w&b != 0 {
		*w &^= b
		s.n--
	}
}

// scan returns the first clear bit at or behind index i, going round. It looks
// at words, so it takes a microsecond at most. It is not ok if all are set.
func (s *portSet) scan(i uint32) (found uint32, ok bool) {
	w, shift := i/64, i%64
	// The first word is looked at twice: from bit i on, and last of all below it.
	free := ^s.words[w] &^ (1<<shift - 1)
	for range portWords + 1 {
		if free != 0 {
			return w*64 + uint32(bits.TrailingZeros64(free)), true
		}
		if w++; w == portWords {
			w = 0
		}
		free = ^s.words[w]
	}
	return 0, false
}

// walk is an order in which to try every index of the range once: it starts
// where the socket's own port is and goes on by a stride that has no factor in
// common with the size of the range. Both come from keyed functions.
type walk struct{ at, stride uint32 }

// newWalk returns the walk of one socket towards one destination, from the
// keyed hashes of the two.
func newWalk(socket, dest uint64) walk {
	at, _ := bits.Mul64(socket, portCount) // uniform to within 2^-48
	stride, _ := bits.Mul64(mix(socket^bits.RotateLeft64(dest, 32)), portCount)
	s := uint32(stride)
	for s%2 == 0 || s%3 == 0 || s%7 == 0 {
		s++
	}
	return walk{uint32(at), s % portCount}
}

// step moves w to the next index.
func (w *walk) step() {
	if w.at += w.stride; w.at >= portCount {
		w.at -= portCount
	}
}

// walkSteps is how many single ports are tried before words are scanned: with
// one port in twenty free, 96 % of the choices end before.
const walkSteps = 64

// choose returns the first index of the walk that is clear in s. It leaves w
// there. It is not ok if all are set.
func (s *portSet) choose(w *walk) (i uint32, ok bool) {
	for range walkSteps {
		if !s.has(w.at) {
			return w.at, true
		}
		w.step()
	}
	if i, ok = s.scan(w.at); ok {
		w.at = i
	}
	return i, ok
}
