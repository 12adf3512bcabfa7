package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fe919326/spillway/tunnel"
)

// rememberEvery is how often the peers' addresses are looked at; the file is
// written only when they changed.
const rememberEvery = time.Second

// rememberFor is how long a silent peer is remembered: WireGuard throws a
// session away after that time (Reject-After-Time, 180 s), and then the peer
// starts the next one itself.
const rememberFor = 180 * time.Second

// remembering is a tunnel that keeps in a file where its peers were last heard
// from. After a restart it calls them at once. Without it they would go on
// sending into sessions that nobody knows any more, until they notice: 15 s
// (Keepalive-Timeout + Rekey-Timeout).
type remembering struct {
	*tunnel.Stock
	path  string
	log   *slog.Logger
	known map[string]netip.AddrPort // by public key, as the last run left it; immutable

	mu     sync.Mutex
	toCall map[uint32]bool // guarded by mu; peers that are to be called
	called map[string]bool // guarded by mu; public keys that are or were in toCall
	stored []storedPeer    // guarded by mu; what the file says
}

// storedPeer is a line of the file.
type storedPeer struct {
	PublicKey string         `json:"public_key"`
	Address   netip.AddrPort `json:"address"`
}

// remember wraps s. A file that cannot be read is no reason not to start: it
// is the peers then who call.
func remember(s *tunnel.Stock, path string, log *slog.Logger) *remembering {
	r := &remembering{Stock: s, path: path, log: log, known: make(map[string]netip.AddrPort),
		toCall: make(map[uint32]bool), called: make(map[string]bool)}
	if err := readJSON(path, &r.stored); err != nil {
		log.Warn("addresses of the tunnel's peers", "err", err)
	}
	for _, p := range r.stored {
		if p.Address.IsValid() {
			r.known[p.PublicKey] = p.Address
		}
	}
	return r
}

// SetPeers implements engine.Tunnel. Peers without an address get the one they
// were last heard from.
func (r *remembering) SetPeers(peers []tunnel.Peer) error {
	peers = slices.Clone(peers)
	r.mu.Lock()
	for i := range peers {
		key := peers[i].PublicKey.String()
		at, ok := r.known[key]
		if !ok {
			continue
		}
		if !peers[i].Addr.IsValid() {
			peers[i].Addr = at
		}
		if !r.called[key] {
			r.called[key], r.toCall[peers[i].ID] = true, true
		}
	}
	r.mu.Unlock()
	if err := r.Stock.SetPeers(peers); err != nil {
		return err
	}
	r.call()
	return nil
}

// call starts a handshake with every peer that is to be called, once.
func (r *remembering) call() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.toCall {
		err := r.Stock.Initiate(id)
		if errors.Is(err, tunnel.ErrNotRunning) {
			return // Run will do it
		}
		delete(r.toCall, id)
		if err != nil {
			r.log.Debug("call a peer of the last run", "err", err)
		}
	}
}

// Run implements engine.Tunnel.
func (r *remembering) Run(ctx context.Context) error {
	done := make(chan struct{})
	watch, cancel := context.WithCancel(ctx)
	go func() {
		defer close(done)
		r.watch(watch)
	}()
	err := r.Stock.Run(ctx)
	cancel()
	<-done
	return err
}

// watch calls the peers when the tunnel is up, and writes down where they are
// until ctx ends.
func (r *remembering) watch(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-r.Stock.Ready():
		r.call()
	}
	tick := time.NewTicker(rememberEvery)
	defer tick.Stop()
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := r.store()
		if err != nil && !told {
			r.log.Warn("addresses of the tunnel's peers are not kept", "err", err)
		}
		told = err != nil
	}
}

// store writes the file if it would say something new.
func (r *remembering) store() error {
	var list []storedPeer
	for _, p := range r.Stock.Peers() {
		if p.Addr.IsValid() && time.Since(p.LastHandshake) < rememberFor {
			list = append(list, storedPeer{p.PublicKey.String(), p.Addr})
		}
	}
	slices.SortFunc(list, func(a, b storedPeer) int { return cmp.Compare(a.PublicKey, b.PublicKey) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(list, r.stored) {
		return nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := writeFile(r.path, b); err != nil {
		return err
	}
	r.stored = list
	return nil
}
