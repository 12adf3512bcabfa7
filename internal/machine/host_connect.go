package machine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/ipam"
)

// connect prepares the namespace, opens its TUN and tells the engine. Rules
// come first, so that nothing leaks before the interface is there. begun is
// when somebody began to wait; the zero time means that nobody does.
func (h *hostRole) connect(a *attached, begun time.Time) (err error) {
	ns, err := h.openTask(a)
	if err != nil {
		return badRequest{err}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.closeTask(a))
		}
	}()
	cfg, err := h.attachConfig(a, ns)
	if err != nil {
		return err
	}
	att, err := hostnet.Prepare(cfg)
	if err != nil {
		return err
	}
	var tun *device.TUN
	defer func() {
		if err == nil {
			return
		}
		if tun != nil {
			err = errors.Join(err, tun.Close())
		}
		// A task that was attached before stays shut in.
		err = errors.Join(err, att.Detach(hostnet.DetachOptions{KeepFailClosed: begun.IsZero()}))
	}()
	opened := time.Now()
	err = ns.Do(func() (err error) {
		tun, err = device.OpenTUN(device.TUNConfig{Name: taskInterface, Persistence: device.Persistent})
		return err
	})
	if err != nil {
		return err
	}
	took := time.Since(opened)
	if err := att.Configure(); err != nil {
		return err
	}
	engaged := time.Now()
	if err := h.engage(a, tun); err != nil {
		return err
	}
	steps := map[string]int64{"tun": took.Microseconds(), "engine": time.Since(engaged).Microseconds()}
	for _, s := range att.Steps() {
		steps[s.Name] += s.Took.Microseconds()
	}
	if !begun.IsZero() {
		steps["total"] = time.Since(begun).Microseconds()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a.net, a.Task.Steps = att, steps
	return nil
}

// openTask opens the namespace of a task of an earlier run; reserve did it for
// others.
func (h *hostRole) openTask(a *attached) (*hostnet.NS, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.ns == nil {
		ns, err := openNamespace(a.Request)
		if err != nil {
			return nil, err
		}
		if id := identity(ns.FD()); a.id == (nsID{}) {
			a.id = id
		} else if a.id != id {
			return nil, errors.Join(fmt.Errorf("%s is another namespace now", a.path()), ns.Close())
		}
		a.ns = ns
	}
	return a.ns, nil
}

// closeTask lets go of a task's namespace.
func (h *hostRole) closeTask(a *attached) error {
	h.mu.Lock()
	ns := a.ns
	a.ns = nil
	h.mu.Unlock()
	if ns == nil {
		return nil
	}
	return ns.Close()
}

// attachConfig is what the kernel must be told about a task.
func (h *hostRole) attachConfig(a *attached, ns *hostnet.NS) (hostnet.AttachConfig, error) {
	cfg := hostnet.AttachConfig{
		NS: ns, Interface: taskInterface, MTU: a.Task.MTU, UDPServers: a.Request.PrimaryUDPPorts,
	}
	var err error
	if cfg.Exclude, err = excluded(h.file.Exclude); err != nil {
		return cfg, err
	}
	if cfg.PrimaryAllow, err = destinations(a.Request.PrimaryAllow); err != nil {
		return cfg, badRequest{err}
	}
	for _, ip := range a.Task.Inner {
		if ip.Is4() {
			cfg.Addr4 = ip
		} else {
			cfg.Addr6 = ip
		}
	}
	return cfg, nil
}

// engage puts the task's TUN under the engine.
func (h *hostRole) engage(a *attached, tun *device.TUN) error {
	h.role.mu.Lock()
	snap := h.snapshot
	h.role.mu.Unlock()
	at := engine.Attachment{Task: a.Task, Port: a.Port}
	found := false
	for i := range snap.Endpoints {
		ep := &snap.Endpoints[i]
		if ep.ID != a.Task.Endpoint || a.Index >= len(ep.Addresses) {
			continue
		}
		c := choice{ep, a.Index, &ep.Addresses[a.Index]}
		at.Egress, found = c.address.Owner, true
		for _, b := range ipam.PairBlocks(c.prefixes(h.file.Machine)) {
			if slices.ContainsFunc(b.Prefixes(), func(p netip.Prefix) bool { return p.Contains(a.Task.Inner[0]) }) {
				at.Gateways = b.Endpoint()
			}
		}
	}
	if !found {
		return fmt.Errorf("endpoint %s is gone", a.Task.Endpoint)
	}
	if err := h.engine.Attach(at); err != nil {
		return err
	}
	if err := h.role.ports.Add(a.Port, tun); err != nil {
		return errors.Join(err, h.engine.Detach(a.Task.ID))
	}
	return nil
}
