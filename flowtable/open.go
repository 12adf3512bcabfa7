package flowtable

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"
)

// errStartOver means that a file exists but holds nothing worth keeping.
var errStartOver = errors.New("start over")

// Open makes a table, or opens the one that a former process left in
// Config.Path: then every flow in it that is valid and has not expired goes
// on. It starts no goroutine.
//
// A table of a former boot of the machine is emptied, because its times mean
// nothing. A file that is not a table of this layout and size gives ErrLayout,
// one that another process has open ErrLocked, one with other rights than 0600
// ErrInsecure; the file then stays as it was.
func Open(cfg Config, now Mono) (*Table, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	size := sizeFor(cfg.MaxFlows)
	var reg region
	var err error
	switch {
	case cfg.Path != "":
		reg, err = openFile(cfg.Path, size, func(page []byte) error {
			var h header
			if err := h.decode(page, cfg.MaxFlows); err != nil {
				return err
			}
			if h.Boot != bootID() || Mono(h.Created) > now {
				return errStartOver
			}
			return nil
		})
	case raceEnabled:
		reg = newHeapRegion(size)
	default:
		reg, err = mapAnonymous(size)
	}
	if err != nil {
		return nil, fmt.Errorf("flowtable: %w", err)
	}
	t, err := openRegion(cfg, reg, now)
	if err != nil {
		reg.close()
		return nil, err
	}
	return t, nil
}

// openRegion is Open with the memory given. cfg is filled in.
func openRegion(cfg Config, reg region, now Mono) (*Table, error) {
	mem := reg.bytes()
	t := &Table{cfg: cfg, region: reg}
	var h header
	if reg.fresh() {
		h = header{
			Magic: magic, Version: layoutVersion, EntrySize: uint32(entrySize),
			MaxFlows: uint64(cfg.MaxFlows), Buckets: uint64(bucketsFor(cfg.MaxFlows)),
			Created: int64(now), Boot: bootID(), Secret: newSecret(cfg.Secret),
		}
		p := h.encode()
		copy(mem[8:], p[8:])
		atomic.StoreUint64((*uint64)(unsafe.Pointer(&mem[0])), binary.NativeEndian.Uint64(p))
		t.stats.fresh = true
	} else if err := h.decode(mem[:headerSize], cfg.MaxFlows); err != nil {
		return nil, fmt.Errorf("flowtable: %w", err)
	}
	t.secret = h.Secret
	t.entries, t.index.buckets = carve(mem, cfg.MaxFlows)
	t.free.entries = t.entries
	t.tasks.init(&cfg)
	if !t.stats.fresh {
		t.recover(now)
	}
	return t, nil
}

// recover builds everything that is not in the entries again: index, free list,
// counts per task. Entries that are not valid become free.
func (t *Table) recover(now Mono) {
	clear(t.index.buckets)
	high := 0
	for i := range t.entries {
		if t.entries[i].meta != 0 {
			high = i + 1
		}
	}
	t.free.unused = uint32(high)
	var half []Ref
	for i := range high {
		e := &t.entries[i]
		m := meta(e.meta)
		if m.phase() != phaseFree {
			if t.adopt(uint32(i), e, m, now) {
				t.stats.recovered++
				if r := makeRef(uint32(i), e.load()); t.isHalf(r) {
					half = append(half, r)
				}
				continue
			}
			t.stats.dropped++
		}
		// The generation stays, so that no Ref of the former process finds the
		// next flow here.
		e.meta = uint64(m & (metaGenMask << metaGenShift))
		t.free.give(uint32(i))
	}
	slices.SortFunc(half, func(a, b Ref) int {
		return cmp.Compare(t.entry(a).created, t.entry(b).created)
	})
	for _, r := range half {
		t.tasks.queue(t.entry(r).task, r, t.isHalf)
	}
}

// adopt takes entry i over from a former process. It reports false if the
// entry is not a flow that can go on.
func (t *Table) adopt(i uint32, e *Entry, m meta, now Mono) bool {
	if !m.live() || m&^metaUsed != 0 || m.gen() == 0 || !m.state().fits(e.Proto()) || !e.plausible(m, now) {
		return false
	}
	out, in := e.keyAt(0), e.keyAt(1)
	ho, hi := t.secret.hash(&out), t.secret.hash(&in)
	if out == in || uint8(e.ports>>56) != identitySum(ho, hi) {
		return false
	}
	// Two flows with one tuple are never committed: one of them is garbage.
	if r, _ := t.find(&out, ho); r != 0 {
		return false
	}
	if r, _ := t.find(&in, hi); r != 0 {
		return false
	}
	if m&metaBusy != 0 {
		// The process died while it wrote the window.
		m &^= metaBusy
		m |= meta(flagLiberal) << 16
	}
	if t.cfg.Mode == Liberal && e.Proto() == protoTCP {
		m |= meta(flagLiberal) << 16
	}
	so := slotOf(ho, Outbound, i)
	if !t.index.put(ho, so) {
		return false
	}
	if !t.index.put(hi, slotOf(hi, Inbound, i)) {
		t.index.drop(ho, so)
		return false
	}
	e.unlock(m)
	t.tasks.adopt(e.task, m.state().HalfOpen())
	return true
}

// plausible reports whether times and TCP fields of an entry are possible, and
// the flow has not expired.
func (e *Entry) plausible(m meta, now Mono) bool {
	at := tickOf(now)
	if e.expire <= at || e.expire > tickAfter(now, maxTimeout)+1 || e.last > at+1 || Mono(e.created) > now {
		return false
	}
	return e.scale[0]&scaleMask <= maxScale && e.scale[1]&scaleMask <= maxScale && (m.prior() == NoState || m.prior().fits(protoTCP))
}
