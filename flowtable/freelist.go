package flowtable

import "sync"

// rest is how many other entries are freed before a freed entry is used again,
// as long as the table has others: whoever still reads it in the meantime reads
// the flow it was.
const rest = 1024

// freeList hands out entries: first those that were never used, in order, so
// that a quiet table touches little memory, then freed ones, oldest first.
type freeList struct {
	mu         sync.Mutex
	entries    []Entry // the table's; next is guarded by mu
	head, tail uint32  // number plus one; 0 is none
	freed      int     // length of the list
	unused     uint32  // first entry that was never used
}

// take returns a free entry, or nil.
func (l *freeList) take() (*Entry, uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(l.unused) < len(l.entries) && l.freed <= rest {
		i := l.unused
		l.unused++
		return &l.entries[i], i
	}
	if l.head == 0 {
		return nil, 0
	}
	i := l.head - 1
	e := &l.entries[i]
	if l.head = e.next; l.head == 0 {
		l.tail = 0
	}
	l.freed--
	return e, i
}

// give puts a free entry at the end of the list.
func (l *freeList) give(i uint32) {
	l.mu.Lock()
	l.entries[i].next = 0
	if l.tail != 0 {
		l.entries[l.tail-1].next = i + 1
	} else {
		l.head = i + 1
	}
	l.tail = i + 1
	l.freed++
	l.mu.Unlock()
}

// inUse returns the number of entries that are not free, and one more than the
// highest entry ever used.
func (l *freeList) inUse() (n, high int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.unused) - l.freed, int(l.unused)
}
