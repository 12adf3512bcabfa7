package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/ipam"
)

// taskInterface is the name of the secondary interface in a task.
const taskInterface = "spill0"

// hostRole runs tasks' interfaces.
type hostRole struct {
	*role
	tasksPath string

	mu    sync.Mutex
	tasks map[string]*attached   // guarded by mu; by id
	inner map[string]*ipam.Inner // guarded by mu; by endpoint and index
	busy  map[string]bool        // guarded by mu; ids being attached or detached
	taken []bool                 // guarded by mu; ports in use
}

// attached is a task as the host keeps it, also on disk.
type attached struct {
	Task  api.Task `json:"task"`
	Port  uint32   `json:"port"`
	Index int      `json:"index"` // of the endpoint's address
	Pool  string   `json:"pool"`  // key of hostRole.inner
	// Request is what made it: it is done again after a restart.
	Request api.AttachRequest `json:"request"`

	net *hostnet.Attachment
	ns  *hostnet.NS // open from reserve or connect until the task is gone
	id  nsID        // of its namespace; zero until it was opened
	// lost: the interface has gone and is to be made anew; told: that this
	// did not work was logged. Guarded by hostRole.mu.
	lost, told bool
}

// RunHost runs the host role until ctx ends.
func RunHost(ctx context.Context, cfg RoleConfig) error {
	h := &hostRole{
		tasks: make(map[string]*attached), inner: make(map[string]*ipam.Inner), busy: make(map[string]bool),
	}
	r, err := newRole(engine.RoleHost, cfg, listenOn{}, nil, h.portDown)
	if err != nil {
		return err
	}
	h.role = r
	h.tasksPath = filepath.Join(r.file.RunDir, "tasks.json")
	if err := h.load(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/tasks", handler(h.attach))
	mux.Handle("DELETE /v1/tasks/{id}", handler(h.detach))
	mux.Handle("GET /v1/tasks", handler(func(*http.Request) ([]api.Task, error) { return h.list(), nil }))
	mux.Handle("PUT /v1/snapshot", handler(h.apply))
	mux.Handle("GET /v1/status", handler(func(*http.Request) ([]api.Status, error) { return h.status(true), nil }))
	return h.run(ctx, mux, h.watch)
}

// load reads the tasks of an earlier run: they are taken up again when the
// first snapshot is there.
func (h *hostRole) load() error {
	var list []*attached
	if err := readJSON(h.tasksPath, &list); err != nil {
		return fmt.Errorf("tasks of the last run: %w: remove the file, then attach the tasks again", err)
	}
	for _, a := range list {
		h.tasks[a.Task.ID] = a
		h.takePortLocked(int(a.Port))
	}
	return nil
}

// saveLocked writes the tasks down.
func (h *hostRole) saveLocked() error {
	list := make([]*attached, 0, len(h.tasks))
	for _, a := range h.tasks {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *attached) int { return cmp.Compare(a.Task.ID, b.Task.ID) })
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(h.tasksPath, b)
}

// apply takes a snapshot: tunnels first, then tasks that wait for it.
func (h *hostRole) apply(r *http.Request) (struct{}, error) {
	s, err := decode[*api.Snapshot](r)
	if err != nil {
		return struct{}{}, err
	}
	h.role.mu.Lock()
	err = h.takeLocked(s)
	first := h.snapshot == nil
	h.role.mu.Unlock()
	if err != nil {
		return struct{}{}, err
	}
	if err := h.engine.Apply(s); err != nil {
		return struct{}{}, badRequest{err}
	}
	if err := h.updatePools(s); err != nil {
		return struct{}{}, err
	}
	h.role.mu.Lock()
	h.snapshot = s
	h.role.mu.Unlock()
	if first {
		h.adopt()
	}
	return struct{}{}, nil
}

// poolKey names the inner addresses of one endpoint address.
func poolKey(endpoint string, index int) string { return endpoint + "-" + strconv.Itoa(index) }

// updatePools gives the allocators of inner addresses the prefixes of s.
func (h *hostRole) updatePools(s *api.Snapshot) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		for n := range ep.Addresses {
			c := choice{ep, n, &ep.Addresses[n]}
			blocks := ipam.PairBlocks(c.prefixes(h.file.Machine))
			key := poolKey(ep.ID, n)
			if p := h.inner[key]; p != nil {
				if err := p.SetBlocks(blocks); err != nil {
					return err
				}
				continue
			}
			if len(blocks) == 0 {
				continue
			}
			p, err := ipam.NewInner(ipam.InnerConfig{Blocks: blocks, Path: filepath.Join(h.file.RunDir, "inner-"+key)})
			if err != nil {
				return err
			}
			var owners []string
			for _, a := range h.tasks {
				if a.Pool == key {
					owners = append(owners, a.Task.ID)
				}
			}
			if err := p.Keep(owners); err != nil {
				return err
			}
			h.inner[key] = p
		}
	}
	return nil
}

// adopt takes up the tasks of an earlier run of this role. A task whose
// namespace has gone is forgotten; one that cannot be taken up now is tried
// again by watch.
func (h *hostRole) adopt() {
	h.mu.Lock()
	list := make([]*attached, 0, len(h.tasks))
	for _, a := range h.tasks {
		if a.net == nil {
			list = append(list, a)
		}
	}
	h.mu.Unlock()
	for _, a := range list {
		if err := h.connect(a, time.Time{}); err != nil {
			if a.present() {
				h.log.Warn("a task of the last run has no interface and sends nothing; trying again", "task", a.Task.ID, "err", err)
				h.mu.Lock()
				a.lost, a.told = true, true
				h.mu.Unlock()
				continue
			}
			h.log.Warn("a task of the last run is gone", "task", a.Task.ID, "err", err)
			h.forget(a)
		}
	}
}

// attach gives a namespace its secondary interface.
func (h *hostRole) attach(r *http.Request) (api.Task, error) {
	begun := time.Now()
	req, err := decode[api.AttachRequest](r)
	if err != nil {
		return api.Task{}, err
	}
	req.Account = cmp.Or(req.Account, "default")
	req.ID = cmp.Or(req.ID, randomName("task-"))
	if err := checkName("task name", req.ID); err != nil {
		return api.Task{}, err
	}
	if (req.Netns == "") == (req.PID == 0) {
		return api.Task{}, badRequest{errors.New("exactly one of netns and pid is needed")}
	}
	if _, err := destinations(req.PrimaryAllow); err != nil {
		return api.Task{}, badRequest{err}
	}
	h.role.mu.Lock()
	snap := h.snapshot
	h.role.mu.Unlock()
	if snap == nil {
		return api.Task{}, errors.New("this host has no snapshot yet: try again in a moment")
	}
	ep, err := endpointOf(snap, req.Account, req.Service, h.file.Zone)
	if err != nil {
		return api.Task{}, badRequest{err}
	}
	ns, err := openNamespace(req)
	if err != nil {
		return api.Task{}, badRequest{err}
	}
	a, err := h.reserve(req, ep, ns)
	if err != nil {
		return api.Task{}, errors.Join(err, ns.Close())
	}
	defer h.release(req.ID)
	if err := h.connect(a, begun); err != nil {
		h.forget(a)
		return api.Task{}, err
	}
	return a.Task, nil
}

// reserve takes an id, an inner address and a port for a new task in ns. A
// namespace holds one task: undoing a second attach that fails would take the
// first one's interface and rules away.
func (h *hostRole) reserve(req api.AttachRequest, ep *api.Endpoint, ns *hostnet.NS) (*attached, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tasks[req.ID] != nil || h.busy[req.ID] {
		return nil, fmt.Errorf("%q: %w", req.ID, engine.ErrTaskExists)
	}
	for id, a := range h.tasks {
		if a.ns != nil && a.ns.Same(ns) {
			return nil, fmt.Errorf("the namespace is that of task %q: %w", id, engine.ErrTaskExists)
		}
	}
	c, err := choose(ep, h.file.Machine, func(index int) int { return h.inner[poolKey(ep.ID, index)].Len() })
	if err != nil {
		return nil, err
	}
	key := poolKey(ep.ID, c.index)
	pair, err := h.inner[key].Take(req.ID)
	if err != nil {
		return nil, err
	}
	a := &attached{Pool: key, Index: c.index, Port: h.newPortLocked(), Request: req, ns: ns, id: identity(ns.FD())}
	a.Task = api.Task{
		ID: req.ID, Account: req.Account, Service: req.Service, Endpoint: ep.ID, Interface: taskInterface,
		Netns: req.Netns, MTU: h.taskMTU(c.address.Owner), Attached: time.Now(),
	}
	for _, ip := range []netip.Addr{pair.V4, pair.V6} {
		if ip.IsValid() {
			a.Task.Inner = append(a.Task.Inner, ip)
		}
	}
	for _, ip := range []netip.Addr{c.address.V4, c.address.V6} {
		if ip.IsValid() {
			a.Task.Outside = append(a.Task.Outside, ip)
		}
	}
	h.tasks[req.ID] = a
	h.busy[req.ID] = true
	return a, h.saveLocked()
}

func (h *hostRole) release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, id)
}

// newPortLocked takes the lowest free port. Port 0 is never used.
func (h *hostRole) newPortLocked() uint32 {
	for p := 1; p < len(h.taken); p++ {
		if !h.taken[p] {
			h.taken[p] = true
			return uint32(p)
		}
	}
	h.takePortLocked(max(len(h.taken), 1))
	return uint32(len(h.taken) - 1)
}

func (h *hostRole) takePortLocked(p int) {
	for len(h.taken) <= p {
		h.taken = append(h.taken, false)
	}
	h.taken[p] = true
}

// forget gives back what reserve took.
func (h *hostRole) forget(a *attached) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tasks, a.Task.ID)
	h.taken[a.Port] = false
	err := h.saveLocked()
	if p := h.inner[a.Pool]; p != nil {
		err = errors.Join(err, p.Release(a.Task.ID))
	}
	if err != nil {
		h.log.Error("a task that has gone is still written down", "task", a.Task.ID, "err", err)
	}
}

// detach takes a task's interface away.
func (h *hostRole) detach(r *http.Request) (struct{}, error) {
	id := r.PathValue("id")
	h.mu.Lock()
	a := h.tasks[id]
	if a == nil || h.busy[id] {
		h.mu.Unlock()
		return struct{}{}, fmt.Errorf("%q: %w", id, engine.ErrUnknownTask)
	}
	h.busy[id] = true
	h.mu.Unlock()
	defer h.release(id)
	return struct{}{}, h.disconnect(a)
}

// list returns the tasks with their counters.
func (h *hostRole) list() []api.Task {
	out := h.engine.Tasks()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range out {
		if a := h.tasks[out[i].ID]; a != nil {
			out[i].Steps = a.Task.Steps
		}
	}
	return out
}
