package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"golang.org/x/sys/unix"
)

// Conflict says that somebody else on the link claims an address of ours
// (RFC 5227 section 2.4).
type Conflict struct {
	Addr netip.Addr
	MAC  net.HardwareAddr // of the other one
	At   time.Time
	// Defended: our own claim was announced again. At most once per
	// ResponderConfig.Defend and address.
	Defended bool
}

// ResponderConfig says where a Responder answers.
type ResponderConfig struct {
	NS   *NS    // namespace of the link; required, and open as long as the Responder runs
	Link string // an Ethernet interface; required
	// Announce are the times after Own at which the address is announced;
	// nil means 0, 0.5 s and 2 s.
	Announce []time.Duration
	Defend   time.Duration  // shortest time between two defences; 0 means 10 s (RFC 5227 DEFEND_INTERVAL)
	Conflict func(Conflict) // called from Run's goroutines, must not block; nil means nobody
	Clock    clock.Clock    // nil means the machine's
}

// Responder answers ARP requests and neighbour solicitations on a link for
// exactly the addresses it owns, and only while Run runs: a process that died,
// hangs or lost an address answers nothing, which kernel proxy entries would
// go on doing. Its methods are safe for concurrent use.
type Responder struct {
	cfg   ResponderConfig
	stats responderStats

	announce chan struct{} // wakes the announcer; immutable
	ready    chan struct{} // closed by the first Run; immutable
	readied  sync.Once

	mu      sync.Mutex
	owned   map[netip.Addr]*ownedAddr   // guarded by mu
	watched map[netip.Addr]chan<- frame // guarded by mu; addresses being probed
	sock    *linkSocket                 // guarded by mu; nil while Run does not run
}

// ownedAddr is one address that is ours. Guarded by Responder.mu.
type ownedAddr struct {
	due      []clock.Mono // announcements still to come
	defended clock.Mono
	everDef  bool
}

type responderStats struct{ answered, announced, conflicts, ignored atomic.Uint64 }

// ResponderStats counts what a Responder did since New.
type ResponderStats struct {
	Answered  uint64 // requests and solicitations answered
	Announced uint64 // announcements sent, defences included
	Conflicts uint64 // frames that claimed an address of ours
	Ignored   uint64 // frames malformed or for other addresses
}

// NewResponder checks the configuration. Nothing is opened before Run.
func NewResponder(cfg ResponderConfig) (*Responder, error) {
	if cfg.NS == nil || cfg.Link == "" {
		return nil, errors.New("responder: namespace and link are required")
	}
	if cfg.Announce == nil {
		cfg.Announce = []time.Duration{0, 500 * time.Millisecond, 2 * time.Second}
	}
	if cfg.Defend == 0 {
		cfg.Defend = 10 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	return &Responder{
		cfg: cfg, owned: map[netip.Addr]*ownedAddr{}, watched: map[netip.Addr]chan<- frame{},
		announce: make(chan struct{}, 1), ready: make(chan struct{}),
	}, nil
}

// Ready is closed when Run listens for the first time.
func (r *Responder) Ready() <-chan struct{} { return r.ready }

// Own makes a an address of ours: it is announced and answered for from now
// on, or from the start of Run. Owning it once more announces it again.
func (r *Responder) Own(a netip.Addr) error {
	a = a.Unmap()
	if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" {
		return fmt.Errorf("responder: %s cannot be owned", a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.owned[a]
	if o == nil {
		o = &ownedAddr{}
		r.owned[a] = o
		if r.sock != nil && a.Is6() {
			if err := r.sock.join(a, true); err != nil {
				delete(r.owned, a)
				return err
			}
		}
	}
	now := r.cfg.Clock.Mono()
	o.due = o.due[:0]
	for _, d := range r.cfg.Announce {
		o.due = append(o.due, now.Add(d))
	}
	r.wake()
	return nil
}

// Disown ends answering for a at once. After it returned no frame for a is
// sent any more.
func (r *Responder) Disown(a netip.Addr) {
	a = a.Unmap()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owned[a] == nil {
		return
	}
	delete(r.owned, a)
	if r.sock != nil && a.Is6() {
		r.sock.join(a, false) // a group too many is only noise
	}
}

// Owned lists the addresses that are ours now.
func (r *Responder) Owned() []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]netip.Addr, 0, len(r.owned))
	for a := range r.owned {
		out = append(out, a)
	}
	return out
}

// Stats returns the counters.
func (r *Responder) Stats() ResponderStats {
	return ResponderStats{
		Answered: r.stats.answered.Load(), Announced: r.stats.announced.Load(),
		Conflicts: r.stats.conflicts.Load(), Ignored: r.stats.ignored.Load(),
	}
}

func (r *Responder) wake() {
	select {
	case r.announce <- struct{}{}:
	default:
	}
}

// Run answers until ctx ends, then returns nil with all goroutines ended. It
// returns an error when the link cannot be opened or goes away; the owned
// addresses stay owned for another Run.
func (r *Responder) Run(ctx context.Context) error {
	s, err := openLinkSocket(r.cfg.NS, r.cfg.Link)
	if err != nil {
		return fmt.Errorf("responder on %s: %w", r.cfg.Link, err)
	}
	r.mu.Lock()
	if r.sock != nil {
		r.mu.Unlock()
		s.close()
		return errors.New("responder: already running")
	}
	r.sock = s
	for a := range r.owned {
		if a.Is6() {
			err = errors.Join(err, s.join(a, true))
		}
	}
	r.mu.Unlock()
	r.readied.Do(func() { close(r.ready) })
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	for _, f := range []*os.File{s.arp, s.nd} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer cancel()
			errs <- r.listen(f)
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		r.announcer(ctx)
	}()
	if err != nil {
		cancel()
	}
	<-ctx.Done()
	r.mu.Lock()
	r.sock = nil
	r.mu.Unlock()
	s.close()
	wg.Wait()
	err = errors.Join(err, <-errs, <-errs)
	cancel()
	if err != nil {
		return fmt.Errorf("responder on %s: %w", r.cfg.Link, err)
	}
	return nil
}

// listen reads frames until the socket is closed (nil) or broken.
func (r *Responder) listen(f *os.File) error {
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue // reported once when the link goes down; it may come up again
		case err != nil:
			return err
		}
		r.handle(buf[:n])
	}
}

// handle looks at one frame. The answer is sent under mu, so that none leaves
// after Disown.
func (r *Responder) handle(b []byte) {
	f, claimed := parseFrame(b)
	if f.kind == noQuestion {
		r.stats.ignored.Add(1)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sock == nil || f.mac == r.sock.mac {
		return
	}
	if ch := r.watched[f.target]; ch != nil {
		select {
		case ch <- f:
		default:
		}
	}
	if f.kind == isHere {
		claimed = f.target
	}
	if o := r.owned[claimed]; o != nil {
		r.conflictLocked(claimed, o, f.mac)
		return
	}
	if f.kind != whoHas || r.owned[f.target] == nil {
		r.stats.ignored.Add(1)
		return
	}
	if r.sock.send(answerFrame(r.sock.mac, &f)) == nil {
		r.stats.answered.Add(1)
	}
}

func (r *Responder) conflictLocked(a netip.Addr, o *ownedAddr, mac [6]byte) {
	r.stats.conflicts.Add(1)
	now := r.cfg.Clock.Mono()
	c := Conflict{Addr: a, MAC: append(net.HardwareAddr(nil), mac[:]...), At: r.cfg.Clock.Wall()}
	if !o.everDef || now.Sub(o.defended) >= r.cfg.Defend {
		o.everDef, o.defended = true, now
		if r.sock.send(announceFrame(r.sock.mac, a)) == nil {
			c.Defended = true
			r.stats.announced.Add(1)
		}
	}
	if r.cfg.Conflict != nil {
		r.cfg.Conflict(c)
	}
}

// announcer sends announcements when they are due.
func (r *Responder) announcer(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.announce:
		}
		if next, ok := r.announceDue(); ok {
			timer.Reset(next)
		}
	}
}

// announceDue sends what is due and says how long until the next.
func (r *Responder) announceDue() (next time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sock == nil {
		return 0, false
	}
	now := r.cfg.Clock.Mono()
	for a, o := range r.owned {
		for len(o.due) > 0 && o.due[0] <= now {
			o.due = o.due[1:]
			if r.sock.send(announceFrame(r.sock.mac, a)) == nil {
				r.stats.announced.Add(1)
			}
		}
		if len(o.due) > 0 {
			if d := o.due[0].Sub(now); !ok || d < next {
				next, ok = d, true
			}
		}
	}
	return next, ok
}

// ErrNotRunning is returned by Probe while Run does not run.
var ErrNotRunning = errors.New("responder is not running")

// Probe asks the link three times whether somebody has a (RFC 5227 section
// 2.1.1, RFC 4862 section 5.4), without claiming it, and waits for the answer
// until each time within/3 passed. It returns the holder's Ethernet address,
// or nil when nobody answered. Somebody else's probe for a counts as a holder.
func (r *Responder) Probe(ctx context.Context, a netip.Addr, within time.Duration) (net.HardwareAddr, error) {
	a = a.Unmap()
	ch := make(chan frame, 1)
	r.mu.Lock()
	if r.sock == nil || r.watched[a] != nil {
		busy := r.sock != nil
		r.mu.Unlock()
		if busy {
			return nil, fmt.Errorf("probe %s: already being probed", a)
		}
		return nil, ErrNotRunning
	}
	r.watched[a] = ch
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.watched, a)
		r.mu.Unlock()
	}()
	t := time.NewTicker(max(within/3, time.Millisecond))
	defer t.Stop()
	for range 3 {
		if err := r.probe(a); err != nil {
			return nil, fmt.Errorf("probe %s: %w", a, err)
		}
	wait:
		for {
			select {
			case f := <-ch:
				if f.kind == isHere || !f.sender.IsValid() {
					return append(net.HardwareAddr(nil), f.mac[:]...), nil
				}
			case <-t.C:
				break wait
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return nil, nil
}

func (r *Responder) probe(a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sock == nil {
		return ErrNotRunning
	}
	if a.Is4() {
		return r.sock.send(probeARP(r.sock.mac, a))
	}
	return r.sock.send(probeND(r.sock.mac, a))
}
