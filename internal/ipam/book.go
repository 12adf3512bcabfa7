package ipam

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

// DefaultHold is how long an outside address or a block rests before somebody
// else may have it. It is longer than the 240 s that RFC 6888 REQ-8 asks for
// TCP.
const DefaultHold = 300 * time.Second

// BookConfig configures a Book.
type BookConfig struct {
	// Path is the file, usually state_dir/alloc.json. "" keeps the book in
	// memory only: for tests and for checks that must not write.
	Path string
	// Clock is read for the time of day. Nil means the machine's.
	Clock clock.Clock
	// Hold is how long things rest. Zero means DefaultHold.
	Hold time.Duration
	// Rand is where the secrets of endpoints come from. Nil means crypto/rand.
	Rand io.Reader
}

// Book remembers which endpoint has which addresses, prefixes and secret. It
// may be used by several goroutines, and the same file by several processes.
type Book struct {
	cfg BookConfig // immutable

	mu  sync.Mutex // also orders users of the file inside this process
	mem state      // guarded by mu; used when there is no file
}

// OpenBook returns the book in cfg.Path. A file that exists is read and
// checked; one that does not is made by the first Update.
func OpenBook(cfg BookConfig) (*Book, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	switch {
	case cfg.Hold < 0:
		return nil, errors.New("ipam: Hold is negative")
	case cfg.Hold == 0:
		cfg.Hold = DefaultHold
	}
	b := &Book{cfg: cfg, mem: newState()}
	if cfg.Path != "" {
		if _, err := readState(cfg.Path); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Update lets fn take and release things, all or nothing: when fn or the
// write fails, nothing has changed. The file is read anew under a lock and
// written only if something changed, so that two processes which work from
// the same configuration get the same answers.
func (b *Book) Update(fn func(*Tx) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cfg.Path == "" {
		st := b.mem.clone()
		if err := b.run(&st, fn); err != nil {
			return err
		}
		b.mem = st
		return nil
	}
	unlock, err := lockFile(b.cfg.Path + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	st, err := readState(b.cfg.Path)
	if err != nil {
		return err
	}
	before := st.encode()
	if err := b.run(&st, fn); err != nil {
		return err
	}
	after := st.encode()
	if slices.Equal(before, after) {
		return nil
	}
	return writeFile(b.cfg.Path, after)
}

func (b *Book) run(st *state, fn func(*Tx) error) error {
	now := b.cfg.Clock.Wall()
	st.expire(now, b.cfg.Hold)
	t := &Tx{st: st, now: now, until: now.Add(b.cfg.Hold).Unix(), rand: b.cfg.Rand, touched: map[any]bool{}}
	return fn(t)
}

// Tx is one change of a Book. It is valid only inside Update and used by one
// goroutine.
type Tx struct {
	st      *state
	now     time.Time
	until   int64 // Unix seconds until which what is released now rests
	rand    io.Reader
	touched map[any]bool // records asked for in this change
}

// EndpointSpec is what an endpoint needs.
type EndpointSpec struct {
	ID      string // eni-…
	Account string
	Subnet  string
	// Ranges are the subnet's addresses, both families, in the order in which
	// they are to be used.
	Ranges []Range
	// Count is the number of addresses per family, 1 to 8. Zero means 1.
	Count int
}

// Address is one outside identity of an endpoint. A family that the subnet
// has no range for is zero.
type Address struct {
	V4 netip.Addr `json:"v4,omitzero"`
	V6 netip.Addr `json:"v6,omitzero"`
}

// MaxAddresses is how many addresses of one family an endpoint may have.
const MaxAddresses = 8

// Endpoint returns the addresses and the 32-byte secret of an endpoint: those
// it had before as far as they still lie in its ranges, else the lowest free
// ones.
func (t *Tx) Endpoint(spec EndpointSpec) ([]Address, []byte, error) {
	n := max(spec.Count, 1)
	if n > MaxAddresses {
		return nil, nil, fmt.Errorf("endpoint %s: %d addresses; the most is %d", spec.ID, n, MaxAddresses)
	}
	e := t.st.Endpoints[spec.ID]
	if e == nil {
		secret := make([]byte, secretLen)
		if _, err := io.ReadFull(t.rand, secret); err != nil {
			return nil, nil, fmt.Errorf("secret of endpoint %s: %w", spec.ID, err)
		}
		e = &endpointRecord{Secret: secret}
		t.st.Endpoints[spec.ID] = e
	}
	e.Account, e.Subnet, e.Rests = spec.Account, spec.Subnet, 0
	t.touched[e] = true
	for len(e.Addresses) > n { // fewer than before: the last ones rest
		t.bury(e, e.Addresses[len(e.Addresses)-1])
		e.Addresses = e.Addresses[:len(e.Addresses)-1]
	}
	for len(e.Addresses) < n {
		e.Addresses = append(e.Addresses, Address{})
	}
	for i := range e.Addresses {
		a := &e.Addresses[i]
		var err error
		if a.V4, err = t.outside(e, &spec, a.V4, netip.Addr.Is4, "IPv4"); err != nil {
			return nil, nil, err
		}
		if a.V6, err = t.outside(e, &spec, a.V6, netip.Addr.Is6, "IPv6"); err != nil {
			return nil, nil, err
		}
	}
	return slices.Clone(e.Addresses), slices.Clone(e.Secret), nil
}

// outside keeps old if the ranges still have it, else takes the lowest free
// address of the family, or none if the subnet has no range of the family.
func (t *Tx) outside(e *endpointRecord, spec *EndpointSpec, old netip.Addr, family func(netip.Addr) bool, name string) (netip.Addr, error) {
	var ranges []Range
	for _, r := range spec.Ranges {
		if family(r.From) {
			ranges = append(ranges, r)
		}
	}
	for _, r := range ranges {
		if old.IsValid() && r.Contains(old) {
			return old, nil
		}
	}
	if old.IsValid() {
		t.bury(e, Address{V4: old})
	}
	if len(ranges) == 0 {
		return netip.Addr{}, nil
	}
	used, resting := t.st.outsideInUse(spec.Account, spec.Subnet)
	for _, r := range ranges {
		for a := r.From; ; a = a.Next() {
			if !used[a] {
				return a, nil
			}
			if a == r.To {
				break
			}
		}
	}
	return netip.Addr{}, fullError(spec.Subnet, name, ranges, resting)
}

// bury lets the addresses of a rest for everybody.
func (t *Tx) bury(e *endpointRecord, a Address) {
	for _, x := range []netip.Addr{a.V4, a.V6} {
		if x.IsValid() {
			t.st.Resting = append(t.st.Resting, restingRecord{Account: e.Account, Subnet: e.Subnet, Address: x, Until: t.until})
		}
	}
}

func fullError(subnet, family string, ranges []Range, resting []int64) error {
	text := make([]string, len(ranges))
	total := uint64(0)
	for i, r := range ranges {
		text[i] = r.String()
		total += r.Size()
	}
	note := ""
	if len(resting) > 0 {
		note = fmt.Sprintf(" (%d of them rest, the first until %s)", len(resting),
			time.Unix(slices.Min(resting), 0).UTC().Format("15:04:05 UTC"))
	}
	return fmt.Errorf("subnet %q: %w: all %d %s addresses of %v are taken%s; add a range to the subnet's addresses",
		subnet, ErrFull, total, family, text, note)
}

// ErrFull is wrapped by the errors which say that a range or a pool has
// nothing left.
var ErrFull = errors.New("no free address")

// Revision counts the versions of a named thing: it is 1 at first and grows
// by one whenever digest differs from the last one.
func (t *Tx) Revision(name, digest string) int64 {
	r := t.st.Revisions[name]
	if r.Digest != digest {
		r = revisionRecord{Digest: digest, Number: r.Number + 1}
		t.st.Revisions[name] = r
	}
	return r.Number
}

// ReleaseOthers gives back every endpoint, block and client that this change
// did not ask for. They rest, and get the same again if they return before
// the rest is over.
func (t *Tx) ReleaseOthers() {
	for _, e := range t.st.Endpoints {
		if !t.touched[e] && e.Rests == 0 {
			e.Rests = t.until
		}
	}
	for _, b := range t.st.Blocks {
		if !t.touched[b] && b.Rests == 0 {
			b.Rests = t.until
		}
	}
	for _, c := range t.st.Clients {
		if !t.touched[c] && c.Rests == 0 {
			c.Rests = t.until
		}
	}
}
