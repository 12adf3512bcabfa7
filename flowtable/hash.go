package flowtable

import (
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"math/bits"
)

// secret keys the hash of tuples: 512 random bits, kept in the table's file
// (0600), so that a hash means the same to the next process and nobody else
// can aim at one bucket.
type secret [8]uint64

// newSecret derives a secret from seed, or draws one if seed is all zero.
func newSecret(seed [32]byte) (s secret) {
	if seed == [32]byte{} {
		rand.Read(seed[:]) // never fails (crypto/rand.Read)
	}
	sum := sha512.Sum512(seed[:])
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(sum[8*i:])
	}
	s[7] |= 1
	return s
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash is a folded-multiply hash in the manner of wyhash. The last round is
// there because port numbers alone would enter linearly without it.
func (s *secret) hash(k *key) uint64 {
	x := mix(k.a^s[0], k.b^s[1])
	y := mix(k.c^s[2], k.d^s[3])
	return mix(mix(x^k.p^s[4], y^s[5])^s[6], s[7])
}
