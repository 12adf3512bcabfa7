package engine

import (
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fe919326/spillway/engine/api"
)

// watchers are those who follow flows as they come and go. The path asks any
// first, which costs one load.
type watchers struct {
	count atomic.Int32

	mu  sync.Mutex
	all []chan api.Flow // guarded by mu
}

// watchBacklog is how far a watcher may fall behind before it misses flows.
const watchBacklog = 4096

func (w *watchers) any() bool { return w.count.Load() > 0 }

// tell gives f to every watcher that has room.
func (w *watchers) tell(f api.Flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.all {
		select {
		case c <- f:
		default: // a slow watcher misses it; the path does not wait
		}
	}
}

func (w *watchers) add() chan api.Flow {
	c := make(chan api.Flow, watchBacklog)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, c)
	w.count.Add(1)
	return c
}

func (w *watchers) remove(c chan api.Flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = slices.DeleteFunc(w.all, func(o chan api.Flow) bool { return o == c })
	w.count.Add(-1)
}

// Watch yields the live flows, then every refusal and every flow that ends, as
// they happen, until ctx ends. A slow reader misses some.
func (e *Engine) Watch(ctx context.Context) iter.Seq[api.Flow] {
	return func(yield func(api.Flow) bool) {
		c := e.watchers.add()
		defer e.watchers.remove(c)
		for f := range e.Flows() {
			if !yield(f) {
				return
			}
		}
		for {
			select {
			case <-ctx.Done():
				return
			case f := <-c:
				if !yield(f) {
					return
				}
			}
		}
	}
}
