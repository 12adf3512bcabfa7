package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/internal/config"
)

// egressRole owns endpoint addresses on subnets.
type egressRole struct {
	*role
	flowLog *flowlog.Logger
	subnets *subnets
	applyMu chan struct{} // one snapshot at a time; holds one token
}

// RunEgress runs the egress role until ctx ends.
func RunEgress(ctx context.Context, cfg RoleConfig) error {
	file, err := config.Load(cfg.Path)
	if err != nil {
		return err
	}
	e := &egressRole{applyMu: make(chan struct{}, 1)}
	e.applyMu <- struct{}{}
	if file.Log.FlowLog != "" {
		e.flowLog, err = flowlog.New(flowlog.Config{
			Path: file.Log.FlowLog, Format: file.Log.Format, Interval: file.Log.Interval, Logger: cfg.Logger,
		})
		if err != nil {
			return err
		}
	}
	listen := wireguardListen(file.Listen.WireGuard)
	if e.role, err = newRole(engine.RoleEgress, cfg, listen, e.flowLog, e.portDown); err != nil {
		return err
	}
	e.subnets = newSubnets(e.role)
	mux := http.NewServeMux()
	mux.Handle("GET /v1/endpoints", handler(func(*http.Request) ([]api.EndpointStatus, error) { return e.engine.Endpoints(), nil }))
	mux.HandleFunc("GET /v1/flows", e.flows)
	mux.Handle("PUT /v1/snapshot", handler(func(r *http.Request) (struct{}, error) { return e.apply(ctx, r) }))
	mux.Handle("GET /v1/status", handler(func(*http.Request) ([]api.Status, error) { return e.status(true), nil }))
	more := []func(context.Context) error{e.subnets.run}
	if e.flowLog != nil {
		more = append(more, e.flowLog.Run)
	}
	return e.run(ctx, mux, more...)
}

// apply takes a snapshot: the kernel's side of new subnets first, then the
// engine, and last the addresses are claimed, so that nobody is told to send
// here before there is somebody to receive.
func (e *egressRole) apply(ctx context.Context, r *http.Request) (struct{}, error) {
	s, err := decode[*api.Snapshot](r)
	if err != nil {
		return struct{}{}, err
	}
	select {
	case <-e.applyMu:
	case <-r.Context().Done():
		return struct{}{}, r.Context().Err()
	}
	defer func() { e.applyMu <- struct{}{} }()
	e.mu.Lock()
	err = e.takeLocked(s)
	e.mu.Unlock()
	if err != nil {
		return struct{}{}, err
	}
	if e.flowLog != nil {
		e.flowLog.Reopen() // so that a log that was rotated away is noticed, at each push
	}
	if err := e.subnets.prepare(ctx, s); err != nil {
		return struct{}{}, err
	}
	if err := e.engine.Apply(s); err != nil {
		return struct{}{}, badRequest{err}
	}
	if err := e.subnets.claim(ctx, s); err != nil {
		return struct{}{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.snapshot = s
	return struct{}{}, nil
}

// portDown hears that a subnet's TUN has gone: the role ends, and its
// supervisor starts it anew, which makes everything again.
func (e *egressRole) portDown(port uint32, err error) {
	e.log.Error("the interface to a subnet has gone", "port", port, "err", err)
	e.subnets.fail(fmt.Errorf("interface to a subnet: %w", err))
}

// flows answers with one JSON object per line.
func (e *egressRole) flows(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	seq := e.engine.Flows()
	rc := http.NewResponseController(w)
	follow := r.URL.Query().Get("follow") == "1"
	if follow {
		seq = e.engine.Watch(r.Context())
		if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.Flush()); err != nil {
			e.log.Debug("flows", "err", err)
			return
		}
	}
	for f := range seq {
		if enc.Encode(f) != nil || follow && rc.Flush() != nil {
			return // the reader has gone
		}
	}
}
