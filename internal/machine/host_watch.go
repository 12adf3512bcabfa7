package machine

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// portDown hears of a TUN that has gone, as when its namespace was deleted.
func (h *hostRole) portDown(port uint32, err error) {
	h.mu.Lock()
	var gone *attached
	for _, a := range h.tasks {
		if a.Port == port && !h.busy[a.Task.ID] {
			gone = a
			h.busy[a.Task.ID] = true
		}
	}
	h.mu.Unlock()
	if gone == nil {
		return
	}
	h.log.Warn("a task's interface has gone", "task", gone.Task.ID, "err", err)
	h.reap <- gone
}

// reaper ends tasks whose interface has gone, so that their addresses and
// ports are given back without anybody asking.
func (h *hostRole) reaper(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-h.reap:
			if err := h.disconnect(a); err != nil {
				h.log.Debug("a task that has gone", "task", a.Task.ID, "err", err)
			}
			h.release(a.Task.ID)
		}
	}
}

// nsID is which namespace a path or process leads to.
type nsID struct{ dev, ino uint64 }

func identity(fd int) nsID {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return nsID{}
	}
	return nsID{uint64(st.Dev), st.Ino}
}

// watchEvery is how often the host looks whether the tasks' namespaces are
// still there: so long the addresses and flows of a task that was never
// detached are kept. The engine's own descriptors keep a namespace alive, so
// that no event tells of its end.
const watchEvery = 2 * time.Second

// watch finds tasks whose namespace or process has gone.
func (h *hostRole) watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		h.mu.Lock()
		var gone []*attached
		for id, a := range h.tasks {
			if a.net != nil && !h.busy[id] && !a.present() {
				h.busy[id] = true
				gone = append(gone, a)
			}
		}
		h.mu.Unlock()
		for _, a := range gone {
			h.log.Warn("a task's namespace has gone without detach", "task", a.Task.ID)
			h.reap <- a
		}
	}
}

// present reports whether what the task was attached by is still there.
func (a *attached) present() bool {
	path := a.Request.Netns
	if a.Request.PID != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", a.Request.PID)
	}
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && nsID{uint64(st.Dev), st.Ino} == a.id
}
