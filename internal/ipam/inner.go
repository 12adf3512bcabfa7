package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// DefaultRest is how long a task's inner address rests before the next task
// gets it (RFC 6888 REQ-8).
const DefaultRest = 120 * time.Second

// InnerConfig configures an Inner.
type InnerConfig struct {
	// Blocks are the prefixes lent to this host for one endpoint address.
	// They may be none at first: see SetBlocks.
	Blocks []Block
	// Rest is how long an address rests. Zero means DefaultRest.
	Rest time.Duration
	// Clock is read for Mono. Nil means the machine's.
	Clock clock.Clock
	// Path is a journal that lets a restarted host know who has what. "" means
	// none: then a restart forgets what rests. Usually a file in run_dir.
	Path string
}

// Inner hands out inner addresses of one endpoint address to the tasks of one
// host: always the lowest free one. It is safe for concurrent use. Close it
// to let go of the journal.
type Inner struct {
	clock clock.Clock   // immutable
	rest  time.Duration // immutable

	mu      sync.Mutex
	blocks  []Block            // guarded by mu
	owners  map[string]place   // guarded by mu: owner to place
	taken   map[place]string   // guarded by mu: place to owner
	resting map[place]restNote // guarded by mu
	journal *journal           // guarded by mu; nil without a file
}

// place is one pair of inner addresses: the n-th of a block. The block is
// named by its prefixes, so that a changed list of blocks moves nobody.
type place struct {
	block Block
	n     uint32
}

type restNote struct {
	until clock.Mono
	owner string // gets the same again if it returns
}

// Pair is what one task uses: an address per family. A family that the
// endpoint address does not have is zero.
type Pair struct {
	V4, V6 netip.Addr
}

// Addrs are the valid addresses, IPv4 first.
func (p Pair) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{p.V4, p.V6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// firstTask is the place of the first task in a block: 0 is the network
// address, 1 belongs to the endpoint.
const firstTask = 2

// NewInner makes an allocator. With a Path it reads the journal: every owner
// in it still has its address until Release or Keep says otherwise, and what
// rested rests once more from the start, since no clock survives a boot.
func NewInner(cfg InnerConfig) (*Inner, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	switch {
	case cfg.Rest < 0:
		return nil, errors.New("ipam: Rest is negative")
	case cfg.Rest == 0:
		cfg.Rest = DefaultRest
	}
	p := &Inner{clock: cfg.Clock, rest: cfg.Rest,
		owners: map[string]place{}, taken: map[place]string{}, resting: map[place]restNote{}}
	if err := p.SetBlocks(cfg.Blocks); err != nil {
		return nil, err
	}
	if cfg.Path == "" {
		return p, nil
	}
	if err := p.load(cfg.Path); err != nil {
		return nil, err
	}
	return p, nil
}

// SetBlocks replaces the list of blocks. Tasks in a block that is gone keep
// their addresses until Release.
func (p *Inner) SetBlocks(blocks []Block) error {
	for i, b := range blocks {
		if b.tasks() == 0 {
			return fmt.Errorf("ipam: block %v has no room for a task", b.Prefixes())
		}
		for _, o := range blocks[:i] {
			if b.V4.IsValid() && o.V4.IsValid() && b.V4.Overlaps(o.V4) || b.V6.IsValid() && o.V6.IsValid() && b.V6.Overlaps(o.V6) {
				return fmt.Errorf("ipam: blocks %v and %v overlap", o.Prefixes(), b.Prefixes())
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocks = slices.Clone(blocks)
	return nil
}

// tasks is how many tasks a block holds: its smaller family counts, without
// the first two addresses and the last. Wrong families count as none.
func (b Block) tasks() uint64 {
	n := uint64(1) << 32
	for i, p := range []netip.Prefix{b.V4, b.V6} {
		if !p.IsValid() {
			continue
		}
		free := p.Addr().BitLen() - p.Bits()
		if p.Addr().Is4() != (i == 0) || p != p.Masked() || free < 2 {
			return 0
		}
		n = min(n, 1<<min(free, 32)-3)
	}
	if n > 1<<31 {
		if !b.V4.IsValid() && !b.V6.IsValid() {
			return 0
		}
		return 1 << 31
	}
	return n
}

func (b Block) pair(n uint32) Pair {
	var out Pair
	if b.V4.IsValid() {
		out.V4 = addrAt(b.V4, uint64(n))
	}
	if b.V6.IsValid() {
		out.V6 = addrAt(b.V6, uint64(n))
	}
	return out
}

// Take gives owner its addresses. An owner that has some gets the same again;
// so does one that comes back while its old ones rest. owner is any text of 1
// to 255 bytes without white space, usually the task's id. When all are taken
// the error wraps ErrFull.
func (p *Inner) Take(owner string) (Pair, error) {
	if owner == "" || len(owner) > 255 || strings.ContainsFunc(owner, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return Pair{}, fmt.Errorf("ipam: owner %q: must be 1 to 255 bytes without white space", owner)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.owners[owner]; ok {
		return at.block.pair(at.n), nil
	}
	at, err := p.findLocked(owner)
	if err != nil {
		return Pair{}, err
	}
	if err := p.journal.note(journalTake, at, owner); err != nil {
		return Pair{}, err
	}
	delete(p.resting, at)
	p.owners[owner], p.taken[at] = at, owner
	p.compactLocked()
	return at.block.pair(at.n), nil
}

func (p *Inner) findLocked(owner string) (place, error) {
	now, rests := p.clock.Mono(), 0
	for at, note := range p.resting {
		switch {
		case now >= note.until:
			delete(p.resting, at)
		case note.owner == owner && slices.Contains(p.blocks, at.block):
			return at, nil
		default:
			rests++
		}
	}
	for _, b := range p.blocks {
		for n := uint64(0); n < b.tasks(); n++ {
			at := place{b, firstTask + uint32(n)}
			if _, rests := p.resting[at]; !rests && p.taken[at] == "" {
				return at, nil
			}
		}
	}
	if len(p.blocks) == 0 {
		return place{}, fmt.Errorf("inner addresses: %w: no prefix was lent to this host", ErrFull)
	}
	var text []string
	for _, b := range p.blocks {
		for _, x := range b.Prefixes() {
			text = append(text, x.String())
		}
	}
	return place{}, fmt.Errorf("inner addresses of %s: %w: %d in use, %d rest for up to %v; detach tasks, or raise limits.max_tasks",
		strings.Join(text, ", "), ErrFull, len(p.taken), rests, p.rest)
}

// Release takes the addresses of owner back; they rest. It does nothing for
// an owner that has none. After an error the owner still has them.
func (p *Inner) Release(owner string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.releaseLocked(owner)
}

func (p *Inner) releaseLocked(owner string) error {
	at, ok := p.owners[owner]
	if !ok {
		return nil
	}
	if err := p.journal.note(journalFree, at, owner); err != nil {
		return err
	}
	delete(p.owners, owner)
	delete(p.taken, at)
	p.resting[at] = restNote{until: p.clock.Mono().Add(p.rest), owner: owner}
	p.compactLocked()
	return nil
}

// Keep releases every owner that is not in owners: a restarted host calls it
// with the tasks it found alive.
func (p *Inner) Keep(owners []string) error {
	keep := map[string]bool{}
	for _, o := range owners {
		keep[o] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for o := range p.owners {
		if !keep[o] {
			errs = append(errs, p.releaseLocked(o))
		}
	}
	return errors.Join(errs...)
}

// Owner says who has address a.
func (p *Inner) Owner(a netip.Addr) (owner string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, o := range p.taken {
		if x := at.block.pair(at.n); x.V4 == a || x.V6 == a {
			return o, a.IsValid()
		}
	}
	return "", false
}

// Len is the number of owners.
func (p *Inner) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.owners)
}

// Close lets go of the journal. The addresses in it stay with their owners.
func (p *Inner) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	j := p.journal
	p.journal = nil
	return j.close()
}
