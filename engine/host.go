package engine

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
)

// ErrTaskExists says that a task with that id, port or address is attached.
var ErrTaskExists = errors.New("task is attached already")

// ErrUnknownTask says that no task has that id.
var ErrUnknownTask = errors.New("no such task")

// hostView is what a host's workers read: immutable, replaced as a whole.
type hostView struct {
	byPort  []*task // index is the port; nil where free
	tunnels []Tunnel
	flows   *flowtable.Table
}

func (v *hostView) task(port uint32) *task {
	if int(port) < len(v.byPort) {
		return v.byPort[port]
	}
	return nil
}

func (v *hostView) tunnel(id uint32) Tunnel {
	if int(id) < len(v.tunnels) {
		return v.tunnels[id]
	}
	return nil
}

// flowCount counts packets and bytes that passed, in one direction. It fills
// a cache line so that two directions do not share one.
type flowCount struct {
	packets, bytes atomic.Uint64
	_              [48]byte
}

// task is one attachment on this host.
type task struct {
	// Immutable after Attach.
	info           api.Task
	port           uint32
	tunnel         uint32 // index into hostView.tunnels
	inner4, inner6 packet.Addr
	gateway4       packet.Addr // where ICMP errors to the task come from
	gateway6       packet.Addr
	limits         *limits

	out, in flowCount
	drops   counters
}

func (t *task) count(c *flowCount, p *packet.Parsed) {
	c.packets.Add(uint64(p.Segments()))
	c.bytes.Add(wireBytes(p))
}

func (t *task) gateway(version uint8) packet.Addr {
	if version == 6 {
		return t.gateway6
	}
	return t.gateway4
}

// refuseOnHost counts a refused packet of a task and, where decision J5 says
// so, answers it.
func (w *worker) refuseOnHost(t *task, r Reason, now flowtable.Mono) {
	p := &w.parsed
	if t == nil {
		w.engine.drops[r].Add(1)
		return
	}
	t.drops[r].Add(uint64(max(p.Segments(), 1)))
	a := answerTo(r, p)
	if a == silence || a == reset || len(p.Data) == 0 || !t.limits.answer(0, now) {
		return // resets are the endpoint's: it knows the flow
	}
	if out := w.reply(a, p, t.gateway(p.Version), w.engine.cfg.MTU); out != nil {
		out.Port = t.port
	}
}

// Attachment is what Attach needs to know of a task.
type Attachment struct {
	Task api.Task // ID, Endpoint and Inner are required
	// Port is the link port of the task's device, below 65,536.
	Port uint32
	// Egress is the machine that owns the endpoint's address.
	Egress string
	// Gateways are the endpoint's inner addresses, one per family: ICMP errors
	// to the task come from there.
	Gateways []netip.Addr
}

// Attach lets the task's packets pass from then on.
func (e *Engine) Attach(a Attachment) error {
	t := &task{info: a.Task, port: a.Port, limits: newLimits(e.cfg.NewFlowsPerTask)}
	if a.Task.ID == "" || len(a.Task.Inner) == 0 || a.Port >= 1<<16 {
		return fmt.Errorf("attach %q: an id, an inner address and a port below 65536 are required", a.Task.ID)
	}
	for _, ip := range a.Task.Inner {
		if ip = ip.Unmap(); ip.Is4() {
			t.inner4 = packet.AddrFrom(ip)
		} else {
			t.inner6 = packet.AddrFrom(ip)
		}
	}
	for _, ip := range a.Gateways {
		if ip = ip.Unmap(); ip.Is4() {
			t.gateway4 = packet.AddrFrom(ip)
		} else {
			t.gateway6 = packet.AddrFrom(ip)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for int(a.Port) >= len(e.byPort) {
		e.byPort = append(e.byPort, nil)
	}
	if e.tasks[a.Task.ID] != nil || e.byPort[a.Port] != nil {
		return fmt.Errorf("attach %q on port %d: %w", a.Task.ID, a.Port, ErrTaskExists)
	}
	for _, o := range e.tasks {
		if (o.inner4 != packet.Addr{} && o.inner4 == t.inner4) || (o.inner6 != packet.Addr{} && o.inner6 == t.inner6) {
			return fmt.Errorf("attach %q: %v belongs to %q: %w", a.Task.ID, a.Task.Inner, o.info.ID, ErrTaskExists)
		}
	}
	tr, err := e.tunnelLocked(a.Egress)
	if err != nil {
		return err
	}
	t.tunnel = tr.id
	e.tasks[a.Task.ID], e.byPort[a.Port] = t, t
	e.publishHostLocked()
	return nil
}

// Detach ends the task's traffic and forgets its flows.
func (e *Engine) Detach(id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	if t == nil {
		return fmt.Errorf("detach %q: %w", id, ErrUnknownTask)
	}
	delete(e.tasks, id)
	e.byPort[t.port] = nil
	e.publishHostLocked()
	if e.flows != nil {
		var gone []flowtable.Ref
		e.flows.All(func(ref flowtable.Ref, f *flowtable.Entry) bool {
			if f.Task() == t.port {
				gone = append(gone, ref)
			}
			return true
		})
		for _, ref := range gone {
			e.flows.Remove(ref)
		}
	}
	return nil
}

// Tasks returns what is attached, sorted by id.
func (e *Engine) Tasks() []api.Task {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]api.Task, 0, len(e.tasks))
	for _, t := range e.tasks {
		info := t.info
		info.Packets = api.Counters{Out: t.out.packets.Load(), In: t.in.packets.Load()}
		info.Bytes = api.Counters{Out: t.out.bytes.Load(), In: t.in.bytes.Load()}
		info.Drops = t.drops.byReason()
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b api.Task) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// publishHostLocked shows the workers the present tasks and tunnels.
func (e *Engine) publishHostLocked() {
	v := &hostView{byPort: slices.Clone(e.byPort), flows: e.flows}
	for _, t := range e.tunnels {
		for int(t.id) >= len(v.tunnels) {
			v.tunnels = append(v.tunnels, nil)
		}
		v.tunnels[t.id] = t.tunnel
	}
	e.host.Store(v)
}
