package flowtable

import "github.com/puzpuzpuz/xsync/v4"

func newXsync() rival { return xMap{xsync.NewMap[Tuple, *Entry]()} }

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
