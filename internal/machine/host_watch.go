package machine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/internal/hostnet"
)

// portDown hears of a TUN that has gone: its namespace was deleted, or the
// task's root deleted it. watch looks after it, so that a task that does this
// again and again costs little.
func (h *hostRole) portDown(port uint32, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.tasks {
		if a.Port == port {
			a.lost = true
			h.log.Warn("a task's interface has gone", "task", a.Task.ID, "err", err)
		}
	}
}

// mend makes the interface of a task anew whose namespace is still there. Its
// rules and guards stand all the time: a task without an interface sends
// nothing.
func (h *hostRole) mend(a *attached) {
	h.mu.Lock()
	a.lost = false // what gets lost from now on is mended next time
	h.mu.Unlock()
	if a.net != nil {
		var errs []error
		if err := h.engine.Detach(a.Task.ID); err != nil && !errors.Is(err, engine.ErrUnknownTask) {
			errs = append(errs, err)
		}
		if err := h.role.ports.Remove(a.Port); err != nil && !errors.Is(err, device.ErrNoPort) {
			errs = append(errs, err)
		}
		h.mu.Lock()
		net := a.net
		a.net = nil
		h.mu.Unlock()
		if err := errors.Join(append(errs, net.Close(), h.closeTask(a))...); err != nil {
			h.log.Warn("a task whose interface has gone", "task", a.Task.ID, "err", err)
		}
	}
	err := h.connect(a, time.Time{})
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		a.told = false
		h.log.Info("a task has its interface again", "task", a.Task.ID)
	default:
		a.lost = true
		if a.told {
			return
		}
		a.told = true
		h.log.Warn("a task has no interface and sends nothing; trying again", "task", a.Task.ID, "err", err)
	}
}

// disconnect undoes connect and forgets the task.
func (h *hostRole) disconnect(a *attached) error {
	var errs []error
	if err := h.engine.Detach(a.Task.ID); err != nil && (a.net != nil || !errors.Is(err, engine.ErrUnknownTask)) {
		errs = append(errs, err)
	}
	if err := h.role.ports.Remove(a.Port); err != nil && !errors.Is(err, device.ErrNoPort) {
		errs = append(errs, err)
	}
	present := a.present()
	if a.net == nil && present {
		// Without an interface: what stands in the namespace is found again.
		if ns, err := h.openTask(a); err != nil {
			errs = append(errs, err)
		} else if cfg, err := h.attachConfig(a, ns); err != nil {
			errs = append(errs, err)
		} else if a.net, err = hostnet.Prepare(cfg); err != nil {
			errs = append(errs, err)
		}
	}
	if a.net != nil {
		// The path to a namespace may go while somebody is still in it: he
		// must not send in clear. With the last of them the kernel removes
		// everything.
		errs = append(errs, a.net.Detach(hostnet.DetachOptions{KeepFailClosed: !present && a.inhabited()}))
	}
	errs = append(errs, h.closeTask(a))
	h.forget(a)
	return errors.Join(errs...)
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

// watchEvery is how often the host looks whether the tasks' namespaces and
// interfaces are still there: so long a task that lost its interface waits for
// another, and the addresses and flows of one that was never detached are
// kept. The engine's own descriptors keep a namespace alive, so that no event
// tells of its end.
const watchEvery = time.Second

// watch mends tasks whose interface has gone, and ends those whose namespace
// or process has.
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
		var gone, lost []*attached
		for id, a := range h.tasks {
			switch {
			case h.busy[id]:
				continue
			case !a.present():
				gone = append(gone, a)
			case a.lost:
				lost = append(lost, a)
			default:
				continue
			}
			h.busy[id] = true
		}
		h.mu.Unlock()
		for _, a := range gone {
			h.log.Warn("a task's namespace has gone without detach", "task", a.Task.ID)
			if err := h.disconnect(a); err != nil {
				h.log.Debug("a task that has gone", "task", a.Task.ID, "err", err)
			}
			h.release(a.Task.ID)
		}
		for _, a := range lost {
			h.mend(a)
			h.release(a.Task.ID)
		}
	}
}

// path is where the kernel shows the task's namespace.
func (a *attached) path() string {
	if a.Request.PID != 0 {
		return fmt.Sprintf("/proc/%d/ns/net", a.Request.PID)
	}
	return a.Request.Netns
}

// present reports whether what the task was attached by is still there.
func (a *attached) present() bool {
	var st unix.Stat_t
	return unix.Stat(a.path(), &st) == nil && nsID{uint64(st.Dev), st.Ino} == a.id
}

// inhabited reports whether some process that can be seen is in the task's
// namespace.
func (a *attached) inhabited() bool {
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return true
	}
	for _, path := range all {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && (nsID{uint64(st.Dev), st.Ino}) == a.id {
			return true
		}
	}
	return false
}
