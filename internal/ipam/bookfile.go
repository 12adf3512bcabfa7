package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stateVersion = 1
	secretLen    = 32
	maxStateFile = 64 << 20 // bytes; ten thousand endpoints need about 5 MB
)

// state is the content of alloc.json.
type state struct {
	Version   int                        `json:"version"`
	Endpoints map[string]*endpointRecord `json:"endpoints"`
	Blocks    []*blockRecord             `json:"blocks"`
	Clients   map[string]*clientRecord   `json:"clients"`
	Resting   []restingRecord            `json:"resting"`
	Revisions map[string]revisionRecord  `json:"revisions"`
}

// Rests in these records is 0 while the thing is in use, else the Unix second
// until which it rests.
type (
	endpointRecord struct {
		Account   string    `json:"account"`
		Subnet    string    `json:"subnet"`
		Addresses []Address `json:"addresses"`
		Secret    []byte    `json:"secret"`
		Rests     int64     `json:"rests,omitempty"`
	}
	blockRecord struct {
		Endpoint string `json:"endpoint"`
		Index    int    `json:"index"`
		Machine  string `json:"machine"`
		Number   int    `json:"number"`
		Block
		Rests int64 `json:"rests,omitempty"`
	}
	clientRecord struct {
		Endpoint string `json:"endpoint"`
		Index    int    `json:"index"`
		Offset   int    `json:"offset"` // place among the clients of the endpoint address
		Rests    int64  `json:"rests,omitempty"`
	}
	restingRecord struct { // an address that its endpoint gave back
		Account string     `json:"account"`
		Subnet  string     `json:"subnet"`
		Address netip.Addr `json:"address"`
		Until   int64      `json:"until"`
	}
	revisionRecord struct {
		Digest string `json:"digest"`
		Number int64  `json:"number"`
	}
)

func newState() state {
	return state{Version: stateVersion, Endpoints: map[string]*endpointRecord{},
		Clients: map[string]*clientRecord{}, Revisions: map[string]revisionRecord{}}
}

// clone is a deep copy: what is encoded can always be decoded.
func (s *state) clone() state {
	out := newState()
	if err := json.Unmarshal(s.encode(), &out); err != nil {
		panic("ipam: own state does not decode: " + err.Error())
	}
	return out
}

func (s *state) encode() []byte {
	slices.SortFunc(s.Blocks, compareBlocks)
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		panic("ipam: own state does not encode: " + err.Error()) // plain fields only
	}
	return append(b, '\n')
}

// expire forgets what has rested long enough. A time further away than one
// hold means that the clock was set back: the rest then starts anew.
func (s *state) expire(now time.Time, hold time.Duration) {
	limit := now.Add(hold).Unix()
	over := func(rests *int64) bool {
		*rests = min(*rests, limit)
		return *rests != 0 && *rests <= now.Unix()
	}
	for id, e := range s.Endpoints {
		if over(&e.Rests) {
			delete(s.Endpoints, id)
		}
	}
	for name, c := range s.Clients {
		if over(&c.Rests) {
			delete(s.Clients, name)
		}
	}
	s.Blocks = slices.DeleteFunc(s.Blocks, func(b *blockRecord) bool { return over(&b.Rests) })
	for i := range s.Resting {
		s.Resting[i].Until = min(s.Resting[i].Until, limit)
	}
	s.Resting = slices.DeleteFunc(s.Resting, func(r restingRecord) bool { return r.Until <= now.Unix() })
}

// outsideInUse returns the addresses of a subnet that nobody else may have,
// and the times until which some of them rest.
func (s *state) outsideInUse(account, subnet string) (map[netip.Addr]bool, []int64) {
	used, resting := map[netip.Addr]bool{}, []int64(nil)
	add := func(a netip.Addr, rests int64) {
		if !a.IsValid() {
			return
		}
		used[a] = true
		if rests != 0 {
			resting = append(resting, rests)
		}
	}
	for _, e := range s.Endpoints {
		if e.Account == account && e.Subnet == subnet {
			for _, a := range e.Addresses {
				add(a.V4, e.Rests)
				add(a.V6, e.Rests)
			}
		}
	}
	for _, r := range s.Resting {
		if r.Account == account && r.Subnet == subnet {
			add(r.Address, r.Until)
		}
	}
	return used, resting
}

func (s *state) blocksInUse() map[netip.Prefix]bool {
	used := map[netip.Prefix]bool{}
	for _, b := range s.Blocks {
		used[b.V4], used[b.V6] = true, true
	}
	return used
}

// ErrCorrupt is wrapped by the errors about a file that cannot be right.
var ErrCorrupt = errors.New("not usable")

func corrupt(path, format string, args ...any) error {
	return fmt.Errorf("%s: %w: %s; put back a copy of it, or move it away: then every endpoint gets a new address and new inner prefixes",
		path, ErrCorrupt, fmt.Sprintf(format, args...))
}

// readState reads and checks the file. One that does not exist is empty.
func readState(path string) (state, error) {
	st := newState()
	b, err := readPrivate(path, maxStateFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return st, nil
	case err != nil:
		return st, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&st); err != nil {
		return newState(), corrupt(path, "%v", err)
	}
	if dec.More() {
		return newState(), corrupt(path, "something follows the data")
	}
	if why := st.check(); why != "" {
		return newState(), corrupt(path, "%s", why)
	}
	return st, nil
}

// check says what cannot be right in a state that was read, or "".
func (s *state) check() string {
	if s.Version != stateVersion {
		return fmt.Sprintf("version %d; this program knows version %d", s.Version, stateVersion)
	}
	if s.Endpoints == nil || s.Clients == nil || s.Revisions == nil {
		return "a part is missing"
	}
	type place struct {
		account, subnet string
		addr            netip.Addr
	}
	owner := map[place]string{}
	for id, e := range s.Endpoints {
		switch {
		case e == nil:
			return fmt.Sprintf("endpoint %q is empty", id)
		case len(e.Secret) != secretLen:
			return fmt.Sprintf("endpoint %q: the secret has %d bytes", id, len(e.Secret))
		case len(e.Addresses) > MaxAddresses || e.Rests < 0:
			return fmt.Sprintf("endpoint %q: impossible number", id)
		}
		for _, a := range e.Addresses {
			if a.V4.IsValid() && !a.V4.Is4() || a.V6.IsValid() && (!a.V6.Is6() || a.V6.Is4In6() || a.V6.Zone() != "") {
				return fmt.Sprintf("endpoint %q: address of the wrong family", id)
			}
			for _, x := range []netip.Addr{a.V4, a.V6} {
				p := place{e.Account, e.Subnet, x}
				if x.IsValid() && owner[p] != "" {
					return fmt.Sprintf("address %s belongs to two endpoints", x)
				}
				owner[p] = id
			}
		}
	}
	for _, r := range s.Resting {
		if !r.Address.IsValid() || r.Until < 0 {
			return "a resting address is not an address"
		}
	}
	for name, c := range s.Clients {
		if c == nil || c.Offset < 0 || c.Index < 0 || c.Rests < 0 {
			return fmt.Sprintf("client %q: impossible number", name)
		}
	}
	return s.checkBlocks()
}

func (s *state) checkBlocks() string {
	seen := map[netip.Prefix]bool{}
	ids := map[blockRecord]bool{}
	for _, b := range s.Blocks {
		if b == nil || b.Index < 0 || b.Number < 0 || b.Rests < 0 {
			return "a block has an impossible number"
		}
		id := blockRecord{Endpoint: b.Endpoint, Index: b.Index, Machine: b.Machine, Number: b.Number}
		if ids[id] {
			return fmt.Sprintf("block %d of machine %q on endpoint %q is there twice", b.Number, b.Machine, b.Endpoint)
		}
		ids[id] = true
		for i, p := range []netip.Prefix{b.V4, b.V6} {
			switch {
			case !p.IsValid():
				continue
			case p.Addr().Is4() != (i == 0) || p.Bits() != blockBits(p) || p != p.Masked():
				return fmt.Sprintf("%s is not a block", p)
			case seen[p]:
				return fmt.Sprintf("block %s is lent twice", p)
			}
			seen[p] = true
		}
	}
	return ""
}

func compareBlocks(a, b *blockRecord) int {
	key := func(r *blockRecord) string {
		return fmt.Sprintf("%s\x00%08d\x00%s\x00%08d", r.Endpoint, r.Index, r.Machine, r.Number)
	}
	return bytes.Compare([]byte(key(a)), []byte(key(b)))
}

// readPrivate reads a regular file of at most limit bytes without following a
// link in its last part.
func readPrivate(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case fi.Size() > limit:
		return nil, fmt.Errorf("%s: %d bytes; the limit is %d", path, fi.Size(), limit)
	}
	b := make([]byte, fi.Size())
	n, err := f.ReadAt(b, 0)
	if int64(n) < fi.Size() {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// writeFile replaces path by data, mode 0600: written beside it, synced, and
// renamed, so that a crash leaves the old content or the new one.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lockFile takes an exclusive lock that ends with the process at the latest.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil // closing gives the lock back
}
