package engine

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/nat"
)

// retiredSlot is a slot that is no longer served. Workers may hold the view
// that has it for the length of one batch, so its table stays open a while.
type retiredSlot struct {
	slot *slot
	at   clock.Mono
}

// retireAfter is far longer than any batch takes.
const retireAfter = 10 * time.Second

// retireLocked ends slots that are no longer served.
func (e *Engine) retireLocked(old map[slotKey]*slot) {
	for key, sl := range old {
		if e.slots[key] != sl {
			e.retired = append(e.retired, retiredSlot{sl, e.clock.Mono()})
			if l := sl.log.Load(); l != nil && !e.servedLocked(key.endpoint) {
				e.cfg.FlowLog.RemoveEndpoint(l)
			}
			e.log.Info("endpoint address is no longer served", "endpoint", key.endpoint, "index", key.index)
		}
	}
}

// servedLocked reports whether any address of an endpoint is served.
func (e *Engine) servedLocked(endpoint string) bool {
	for key := range e.slots {
		if key.endpoint == endpoint {
			return true
		}
	}
	return false
}

// reviveLocked takes back a slot that was retired a moment ago.
func (e *Engine) reviveLocked(key slotKey, addr api.EndpointAddress, port uint32) *slot {
	for i, r := range e.retired {
		if r.slot.key == key && r.slot.serves(addr, port) {
			e.retired = slices.Delete(e.retired, i, i+1)
			return r.slot
		}
	}
	return nil
}

// closeRetired ends tables that no worker can hold any more, and their files.
func (e *Engine) closeRetired(now clock.Mono) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = slices.DeleteFunc(e.retired, func(r retiredSlot) bool {
		if now.Sub(r.at) < retireAfter {
			return false
		}
		err := r.slot.close()
		if r.slot.path != "" {
			err = errors.Join(err, os.Remove(r.slot.path))
		}
		if err != nil {
			e.log.Warn("flow table of an endpoint that has gone", "endpoint", r.slot.key.endpoint, "err", err)
		}
		return true
	})
}

// serves reports whether s already is what addr asks for.
func (s *slot) serves(addr api.EndpointAddress, port uint32) bool {
	return s.port == port && s.v4 == addrOrZero(addr.V4) && s.v6 == addrOrZero(addr.V6)
}

func addrOrZero(a netip.Addr) packet.Addr {
	if !a.IsValid() {
		return packet.Addr{}
	}
	return packet.AddrFrom(a)
}

// newSlot makes the state of one endpoint address.
func (e *Engine) newSlot(key slotKey, ep *api.Endpoint, addr api.EndpointAddress, port uint32) (*slot, error) {
	if len(ep.Secret) != 32 {
		return nil, fmt.Errorf("endpoint %s: its secret has %d bytes, want 32", ep.ID, len(ep.Secret))
	}
	s := &slot{
		key: key, v4: addrOrZero(addr.V4), v6: addrOrZero(addr.V6),
		port: port, mtu: e.cfg.MTU, limits: newLimits(e.cfg.NewFlowsPerTask),
	}
	now := e.clock.Mono()
	s.looseUntil = now.Add(e.cfg.LoosePickup)
	cfg := e.tableConfig(fmt.Sprintf("%s-%d-%x", ep.ID, key.index, low32(s.v4)+low32(s.v6)), s)
	s.path = cfg.Path
	table, err := e.openTable(cfg, now)
	if err != nil {
		return nil, fmt.Errorf("flow table of endpoint %s: %w", ep.ID, err)
	}
	s.table = table
	nc := nat.Config{Table: table, Secret: [32]byte(ep.Secret), V4: addr.V4, V6: addr.V6}
	for _, p := range e.cfg.ReservedPorts {
		nc.Reserved = append(nc.Reserved, nat.PortRange{First: p, Last: p})
	}
	if ep.UDPMapping == "independent" {
		nc.UDP = nat.Independent
	}
	if s.mapper, err = nat.New(nc); err != nil {
		return nil, errors.Join(fmt.Errorf("endpoint %s: %w", ep.ID, err), table.Close())
	}
	return s, nil
}

// tableConfig is the flow table of an endpoint address, or of the host if s
// is nil.
func (e *Engine) tableConfig(name string, s *slot) flowtable.Config {
	cfg := flowtable.Config{
		MaxFlows:           e.cfg.MaxFlows,
		MaxFlowsPerTask:    e.cfg.MaxFlowsPerTask,
		MaxHalfOpenPerTask: e.cfg.MaxHalfOpen,
		Timeouts:           e.cfg.Timeouts,
	}
	if e.cfg.TableDir != "" {
		cfg.Path = filepath.Join(e.cfg.TableDir, strings.ReplaceAll(name, "/", "-")+".flows")
	}
	if s == nil {
		cfg.Mode = flowtable.Liberal
	} else {
		cfg.LoosePickup = s.looseUntil
		cfg.OnRemove = func(f *flowtable.Entry) {
			if s.mapper != nil { // nil while the table is being opened
				s.mapper.Released(f)
				e.logEnd(s, f)
			}
		}
	}
	return cfg
}

// openTable opens a flow table. A file of another size or layout, as after a
// change of MaxFlows or an upgrade, is put away: its flows are lost, which the
// log tells.
func (e *Engine) openTable(cfg flowtable.Config, now clock.Mono) (*flowtable.Table, error) {
	t, err := flowtable.Open(cfg, now)
	if errors.Is(err, flowtable.ErrLayout) && cfg.Path != "" {
		e.log.Warn("a flow table is begun anew, its flows are lost", "path", cfg.Path, "why", err)
		if err := os.Remove(cfg.Path); err != nil {
			return nil, err
		}
		return flowtable.Open(cfg, now)
	}
	return t, err
}

// closeTables ends what Run opened.
func (e *Engine) closeTables() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for sl := range maps.Values(e.slots) {
		errs = append(errs, sl.close())
	}
	for _, r := range e.retired {
		errs = append(errs, r.slot.close())
	}
	if e.flows != nil {
		errs = append(errs, e.flows.Close())
	}
	e.slots, e.retired, e.flows = nil, nil, nil
	e.group = nil
	e.host.Store(&hostView{})
	e.egress.Store(&egressView{})
	return errors.Join(errs...)
}
