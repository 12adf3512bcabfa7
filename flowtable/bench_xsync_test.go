//go:build xsync

package flowtable

import "github.com/puzpuzpuz/xsync/v4"

func newXsyncMap() rival { return xMap{xsync.NewMap[Tuple, *Entry]()} }

var newXsync = newXsyncMap

type xMap struct{ *xsync.Map[Tuple, *Entry] }

func (m xMap) insert(f *Flow) {
	e := new(Entry)
	m.Store(f.Inner, e)
	m.Store(f.Reply(), e)
}

func (m xMap) lookup(k *Tuple) bool {
	_, ok := m.Load(*k)
	return ok
}
