package ipam

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/fe919326/spillway/internal/clock"
	"golang.org/x/sys/unix"
)

// The journal is text, a line for each change:
//
//	take 100.112.4.0/22 fd53:7069:6c6c:1::/64 2 task-17
//	free 100.112.4.0/22 fd53:7069:6c6c:1::/64 2 task-17
//
// with "-" for a family that is missing. A last line without an end was cut
// short by a crash and is dropped. When the file has grown to several times
// what it says, it is written anew.
const (
	journalTake = "take"
	journalFree = "free"

	maxJournal  = 64 << 20 // bytes
	compactAt   = 1024     // lines at which a journal may be written anew
	compactOver = 4        // and at least so many lines for each fact
)

type journal struct {
	path  string
	f     *os.File
	size  int64 // bytes of whole lines
	lines int
}

// note adds a line. It is not synced: the journal lives as long as the boot
// does, which is how long tasks live. A nil journal takes everything.
func (j *journal) note(verb string, at place, owner string) error {
	if j == nil {
		return nil
	}
	line := formatLine(verb, at, owner)
	if _, err := j.f.WriteAt(line, j.size); err != nil {
		// The half line that may be there is overwritten by the next one.
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	j.size += int64(len(line))
	j.lines++
	return nil
}

func (j *journal) close() error {
	if j == nil {
		return nil
	}
	return j.f.Close()
}

func formatLine(verb string, at place, owner string) []byte {
	text := func(p netip.Prefix) string {
		if !p.IsValid() {
			return "-"
		}
		return p.String()
	}
	return fmt.Appendf(nil, "%s %s %s %d %s\n", verb, text(at.block.V4), text(at.block.V6), at.n, owner)
}

func parseLine(line string) (verb string, at place, owner string, err error) {
	bad := fmt.Errorf("line %q", line)
	f := strings.Split(line, " ")
	if len(f) != 5 || f[0] != journalTake && f[0] != journalFree || f[4] == "" {
		return "", place{}, "", bad
	}
	for i, to := range []*netip.Prefix{&at.block.V4, &at.block.V6} {
		if f[1+i] == "-" {
			continue
		}
		if *to, err = netip.ParsePrefix(f[1+i]); err != nil {
			return "", place{}, "", bad
		}
	}
	n, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil || n < firstTask || n-firstTask >= at.block.tasks() {
		return "", place{}, "", bad
	}
	at.n = uint32(n)
	return f[0], at, f[4], nil
}

// load reads the journal and opens it for more. It runs before p is shared.
func (p *Inner) load(path string) error {
	b, err := readPrivate(path, maxJournal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	whole := b[:bytes.LastIndexByte(b, '\n')+1]
	sc := bufio.NewScanner(bytes.NewReader(whole))
	lines, until := 0, p.clock.Mono().Add(p.rest)
	for sc.Scan() {
		lines++
		if err := p.replay(sc.Text(), until); err != nil {
			return corruptJournal(path, lines, err)
		}
	}
	if err := sc.Err(); err != nil {
		return corruptJournal(path, lines+1, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(len(whole))); err != nil {
		f.Close()
		return fmt.Errorf("journal %s: %w", path, err)
	}
	p.journal = &journal{path: path, f: f, size: int64(len(whole)), lines: lines}
	return nil
}

func corruptJournal(path string, line int, err error) error {
	return fmt.Errorf("journal %s, line %d: %w: %v; move the file away: running tasks must then be attached again", path, line, ErrCorrupt, err)
}

func (p *Inner) replay(line string, until clock.Mono) error {
	verb, at, owner, err := parseLine(line)
	if err != nil {
		return err
	}
	has, ok := p.owners[owner]
	if verb == journalTake {
		if ok || p.taken[at] != "" {
			return fmt.Errorf("%q takes what is taken", line)
		}
		delete(p.resting, at)
		p.owners[owner], p.taken[at] = at, owner
		return nil
	}
	if ok && has != at {
		return fmt.Errorf("%q frees what it has not", line)
	}
	delete(p.owners, owner)
	delete(p.taken, at)
	p.resting[at] = restNote{until: until, owner: owner}
	return nil
}

// compactLocked writes the journal anew when it is mostly history. A failure
// leaves the old one, which is still right.
func (p *Inner) compactLocked() {
	j := p.journal
	if j == nil || j.lines < compactAt || j.lines < compactOver*(len(p.owners)+len(p.resting)) {
		return
	}
	var b bytes.Buffer
	lines := 0
	for at, note := range p.resting {
		b.Write(formatLine(journalFree, at, note.owner))
		lines++
	}
	for owner, at := range p.owners {
		b.Write(formatLine(journalTake, at, owner))
		lines++
	}
	if err := writeFile(j.path, b.Bytes()); err != nil {
		return
	}
	j.f.Close() // the old file has no name any more: notes must not go there
	f, err := os.OpenFile(j.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return // every note fails from now on, and says so
	}
	j.f, j.size, j.lines = f, int64(b.Len()), lines
}
