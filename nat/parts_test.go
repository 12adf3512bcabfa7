package nat

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// TestSipHashVectors compares with vectors_sip64 of the reference
// implementation (key 00 01 .. 0f, input 00 01 .. of growing length); length
// 15 is the example in the paper.
func TestSipHashVectors(t *testing.T) {
	var key, in [16]byte
	for i := range key {
		key[i], in[i] = byte(i), byte(i)
	}
	k := newSipKey(key[:])
	for n, want := range map[int]uint64{
		0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 2: 0x0d6c8009d9a94f5a, 3: 0x85676696d7fb7e2d,
		7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5,
	} {
		if got := k.sum(in[:n]); got != want {
			t.Errorf("SipHash-2-4 of %d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// TestTallyEqualsMap runs random counts against a Go map. Keys are few and
// alike, so that runs of slots are long and every kind of gap is closed.
func TestTallyEqualsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tl tally
		model := map[uint64]uint32{}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			key := rapid.Uint64Range(1, 80).Draw(t, "key")
			if rapid.Bool().Draw(t, "spread") {
				key |= key << 60
			}
			if rapid.IntRange(0, 4).Draw(t, "add") < 3 {
				tl.add(key).tag = uint32(key)
				model[key]++
			} else {
				if got := tl.sub(key); got.n != model[key] {
					t.Fatalf("sub(%#x) found %d, want %d", key, got.n, model[key])
				}
				if model[key]--; model[key] == 0 || model[key] == ^uint32(0) {
					delete(model, key)
				}
			}
		}
		if tl.used != len(model) {
			t.Fatalf("%d keys, want %d", tl.used, len(model))
		}
		for key, n := range model {
			if s := tl.find(key); s == nil || s.n != n || s.tag != uint32(key) {
				t.Fatalf("find(%#x) = %+v, want %d", key, s, n)
			}
		}
	})
}

// TestK16_TallyGivesMemoryBack: what an attack made grow shrinks after it.
func TestK16_TallyGivesMemoryBack(t *testing.T) {
	const keys = 100_000
	var tl tally
	for i := range uint64(keys) {
		tl.add(mix(i))
	}
	if n := len(tl.slots); n < keys || n > 3*keys {
		t.Errorf("%d slots for 100,000 keys", n)
	}
	for i := range uint64(keys) {
		tl.sub(mix(i))
	}
	if n := len(tl.slots); n > 4*minSlots || tl.used != 0 {
		t.Errorf("%d slots and %d keys are left of an empty table", n, tl.used)
	}
}

// TestWalkVisitsEveryPortOnce, whatever the keys are.
func TestWalkVisitsEveryPortOnce(t *testing.T) {
	for i := range uint64(scaled(200)) {
		w := newWalk(mix(i), mix(i<<32+5))
		var seen portSet
		for range portCount {
			seen.set(w.at)
			w.step()
		}
		if seen.n != portCount {
			t.Fatalf("stride %d visits %d of %d ports", w.stride, seen.n, portCount)
		}
	}
}

// TestPortSetFindsTheLastPort: with one port free it is found, from anywhere,
// and with none nothing is.
func TestPortSetFindsTheLastPort(t *testing.T) {
	var s portSet
	for i := range uint32(portCount) {
		s.set(i)
	}
	if i, ok := s.scan(777); ok {
		t.Errorf("full set gave %d", i)
	}
	rapid.Check(t, func(t *rapid.T) {
		free := rapid.Uint32Range(0, portCount-1).Draw(t, "free")
		s.clear(free)
		defer s.set(free)
		w := newWalk(rapid.Uint64().Draw(t, "socket"), rapid.Uint64().Draw(t, "dest"))
		if i, ok := s.choose(&w); !ok || i != free || w.at != free {
			t.Fatalf("only %d is free, chose %d, %v", free, i, ok)
		}
	})
	if s.n != portCount {
		t.Errorf("%d bits set, want %d", s.n, portCount)
	}
}

func FuzzTally(f *testing.F) {
	f.Add([]byte{1, 2, 3, 1, 2, 3, 129, 130})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var tl tally
		model := map[uint64]uint32{}
		for _, op := range ops {
			key := binary.LittleEndian.Uint64([]byte{op & 31, 0, 0, 0, 0, 0, 0, op & 0x60})
			if op < 128 {
				tl.add(key)
				model[key]++
			} else if got := tl.sub(key).n; got != model[key] {
				t.Fatalf("sub found %d, want %d", got, model[key])
			} else if got > 0 {
				if model[key]--; model[key] == 0 {
					delete(model, key)
				}
			}
			for k, n := range model {
				if tl.count(k) != n {
					t.Fatalf("count(%#x) = %d, want %d", k, tl.count(k), n)
				}
			}
		}
	})
}
