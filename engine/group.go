package engine

import (
	"context"
	"sync"
)

// group owns goroutines: every one that starts is joined by wait, and the
// first that fails ends the others.
type group struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error // written under once
}

func newGroup(cancel context.CancelFunc) *group { return &group{cancel: cancel} }

func (g *group) start(f func() error) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		if err := f(); err != nil && !isClosed(err) {
			g.once.Do(func() { g.err = err })
			g.cancel()
		}
	}()
}

func (g *group) wait() error {
	g.wg.Wait()
	return g.err
}
