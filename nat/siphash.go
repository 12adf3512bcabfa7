package nat

import (
	"encoding/binary"
	"math/bits"
)

// sipKey is the key of SipHash-2-4, a pseudo-random function for short inputs
// (Aumasson and Bernstein, 2012). It is used instead of hash/maphash because
// its result must be the same in every process that shares a secret.
type sipKey struct{ k0, k1 uint64 }

// newSipKey reads a key as the reference implementation does.
func newSipKey(b []byte) sipKey {
	return sipKey{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// sum returns SipHash-2-4 of b.
func (k sipKey) sum(b []byte) uint64 {
	s := sipState{
		k.k0 ^ 0x736f6d6570736575,
		k.k1 ^ 0x646f72616e646f6d,
		k.k0 ^ 0x6c7967656e657261,
		k.k1 ^ 0x7465646279746573,
	}
	last := uint64(len(b)) << 56
	for len(b) >= 8 {
		s.block(binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	s.block(last)
	s[2] ^= 0xFF
	s.round()
	s.round()
	s.round()
	s.round()
	return s[0] ^ s[1] ^ s[2] ^ s[3]
}

type sipState [4]uint64

func (s *sipState) block(m uint64) {
	s[3] ^= m
	s.round()
	s.round()
	s[0] ^= m
}

func (s *sipState) round() {
	s[0] += s[1]
	s[1] = bits.RotateLeft64(s[1], 13) ^ s[0]
	s[0] = bits.RotateLeft64(s[0], 32)
	s[2] += s[3]
	s[3] = bits.RotateLeft64(s[3], 16) ^ s[2]
	s[0] += s[3]
	s[3] = bits.RotateLeft64(s[3], 21) ^ s[0]
	s[2] += s[1]
	s[1] = bits.RotateLeft64(s[1], 17) ^ s[2]
	s[2] = bits.RotateLeft64(s[2], 32)
}

// mix spreads the bits of a over all 64 (the finalizer of SplitMix64, Steele,
// Lea and Flood, 2014). It is a permutation, not a secret one: only for values
// that are unguessable already.
func mix(a uint64) uint64 {
	a = (a ^ a>>30) * 0xbf58476d1ce4e5b9
	a = (a ^ a>>27) * 0x94d049bb133111eb
	return a ^ a>>31
}
