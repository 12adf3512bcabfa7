package machine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/internal/hostnet"
)

// syncEvery is how often the routes of a subnet that is not isolated are
// copied anew: so long a change of the subnet's routes may go unnoticed.
const syncEvery = time.Second

// subnets is the kernel's side of every subnet of an egress.
type subnets struct {
	role    *role
	failed  chan error
	started chan struct{} // closed by run

	mu  sync.Mutex
	all map[string]*subnet // guarded by mu; by account/name
	ctx context.Context    // guarded by mu; nil before run
	wg  sync.WaitGroup
}

// subnet is one subnet: its namespace, its TUN, and who answers for its
// addresses.
type subnet struct {
	spec      api.Subnet
	net       *hostnet.Subnet
	responder *hostnet.Responder
	claimer   hostnet.Claimer
	port      uint32
	claimed   map[netip.Addr]uint64 // address to epoch
	running   bool                  // the responder
}

// tunQueue is how many packets a subnet's TUN holds for us: the kernel's 500
// are overrun by a burst of small packets.
const tunQueue = 5000

func newSubnets(r *role) *subnets {
	return &subnets{role: r, failed: make(chan error, 1), started: make(chan struct{}), all: make(map[string]*subnet)}
}

// fail makes run return err.
func (s *subnets) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// run answers for addresses and keeps routes in step until ctx ends, then
// gives every address back and undoes everything.
func (s *subnets) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.ctx = ctx
	for _, sub := range s.all {
		s.respondLocked(sub)
	}
	s.mu.Unlock()
	close(s.started)
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for ctx.Err() == nil && err == nil {
		select {
		case <-ctx.Done():
		case err = <-s.failed:
		case <-tick.C:
			s.sync()
		}
	}
	cancel() // responders end before the addresses are given back
	return errors.Join(err, s.close())
}

// respondLocked starts to answer ARP and neighbour discovery on sub's link.
func (s *subnets) respondLocked(sub *subnet) {
	if s.ctx == nil || sub.running {
		return
	}
	sub.running = true
	ctx := s.ctx
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		if err := sub.responder.Run(ctx); err != nil && ctx.Err() == nil {
			s.fail(fmt.Errorf("subnet %s: %w", sub.spec.Name, err))
		}
	}()
}

func (s *subnets) sync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.all {
		if sub.spec.Isolate != string(hostnet.IsolateNone) {
			continue
		}
		if err := sub.net.Sync(); err != nil {
			s.role.log.Warn("routes of a subnet", "subnet", sub.spec.Name, "err", err)
		}
	}
}

func (s *subnets) close() error {
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var errs []error
	for _, sub := range s.all {
		for a, epoch := range sub.claimed {
			errs = append(errs, sub.claimer.Release(ctx, a, epoch))
		}
		errs = append(errs, sub.net.Close())
	}
	s.all = make(map[string]*subnet)
	return errors.Join(errs...)
}

// subnetID is a short name of a subnet, fit for an interface name.
func subnetID(account, name string) string {
	if account == "default" && len(name) <= 12 {
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(account + "/" + name))
	return fmt.Sprintf("%.3s-%08x", name, h.Sum32())
}

// prepare makes the kernel's side of subnets that are new.
func (s *subnets) prepare(ctx context.Context, snap *api.Snapshot) error {
	select {
	case <-s.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, spec := range egressSubnets(snap, s.role.file.Machine) {
		key := spec.Account + "/" + spec.Name
		if s.all[key] != nil {
			continue
		}
		sub, err := s.openLocked(spec)
		if err != nil {
			return err
		}
		s.all[key] = sub
		s.respondLocked(sub)
		s.role.engine.AddSubnet(spec.Account, spec.Name, sub.port)
	}
	return nil
}

func (s *subnets) openLocked(spec api.Subnet) (sub *subnet, err error) {
	if spec.Driver != "tun" {
		return nil, badRequest{fmt.Errorf("subnet %s: driver %q is not there yet: use tun", spec.Name, spec.Driver)}
	}
	sub = &subnet{spec: spec, port: uint32(len(s.all) + 1), claimed: make(map[netip.Addr]uint64)}
	sub.net, err = hostnet.OpenSubnet(hostnet.SubnetConfig{
		ID: subnetID(spec.Account, spec.Name), Link: spec.Interface, Isolate: hostnet.Isolation(spec.Isolate),
		RunDir: subnetNamespaces(s.role.file.RunDir), Index: len(s.all),
	})
	if err != nil {
		return nil, err
	}
	kernel := sub.net // sub is nil in the deferred call after an error
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("subnet %s: %w", spec.Name, err), kernel.Close())
		}
	}()
	var tun *device.TUN
	err = sub.net.NS().Do(func() (err error) {
		tun, err = device.OpenTUN(device.TUNConfig{Name: sub.net.TUN()})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tun.Close())
		}
	}()
	conn, err := sub.net.NS().Open()
	if err != nil {
		return nil, err
	}
	link, err := conn.Link(sub.net.Link())
	if own, aerr := conn.Addrs(sub.net.Link()); aerr == nil && !slices.ContainsFunc(own, isUsable) {
		s.role.log.Warn("the interface has no address of its own on the subnet: neighbours will not answer it",
			"subnet", spec.Name, "interface", sub.net.Link())
	}
	if err = errors.Join(err, conn.SetQueueLen(sub.net.TUN(), tunQueue), conn.Close()); err != nil {
		return nil, err
	}
	if err = sub.net.Configure(link.MTU); err != nil {
		return nil, err
	}
	sub.responder, err = hostnet.NewResponder(hostnet.ResponderConfig{
		NS: sub.net.NS(), Link: sub.net.Link(),
		Conflict: func(c hostnet.Conflict) {
			s.role.log.Error("somebody else claims an endpoint's address", "subnet", spec.Name, "address", c.Addr, "mac", c.MAC)
		},
	})
	if err != nil {
		return nil, err
	}
	if sub.claimer, err = claimerOf(spec.Claim); err != nil {
		return nil, badRequest{err}
	}
	return sub, s.role.ports.Add(sub.port, tun)
}

// isUsable reports whether an address can be the source of ARP and neighbour
// discovery for packets that are passed on.
func isUsable(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() }

// claimerOf is who takes addresses by way of a configured claim. Whatever the
// way, the engine answers ARP and neighbour discovery for what it owns.
func claimerOf(claim string) (hostnet.Claimer, error) {
	if path, ok := strings.CutPrefix(claim, "exec:"); ok {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("claim %q: want exec:/absolute/path", claim)
		}
		return hostnet.ClaimExec{Path: path}, nil
	}
	return hostnet.ClaimNone{}, nil
}

// claim takes the addresses that snap gives this machine, and gives back those
// it no longer does.
func (s *subnets) claim(ctx context.Context, snap *api.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for key, sub := range s.all {
		want := make(map[netip.Addr]uint64)
		for _, ep := range snap.Endpoints {
			if ep.Account+"/"+ep.Subnet != key {
				continue
			}
			for _, a := range ep.Addresses {
				for _, ip := range []netip.Addr{a.V4, a.V6} {
					if ip.IsValid() && a.Owner == s.role.file.Machine {
						want[ip] = uint64(a.Epoch)
					}
				}
			}
		}
		for ip, epoch := range sub.claimed {
			if _, ok := want[ip]; !ok {
				sub.responder.Disown(ip)
				errs = append(errs, sub.claimer.Release(ctx, ip, epoch), sub.net.RemoveAddress(ip))
				delete(sub.claimed, ip)
			}
		}
		for ip, epoch := range want {
			if have, ok := sub.claimed[ip]; ok && have == epoch {
				continue
			}
			if err := s.takeLocked(ctx, sub, ip, epoch); err != nil {
				errs = append(errs, fmt.Errorf("subnet %s: address %v: %w", sub.spec.Name, ip, err))
				continue
			}
			sub.claimed[ip] = epoch
		}
	}
	return errors.Join(errs...)
}

// takeLocked routes an address to the TUN, claims it, and answers for it.
func (s *subnets) takeLocked(ctx context.Context, sub *subnet, ip netip.Addr, epoch uint64) error {
	select {
	case <-sub.responder.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := sub.net.AddAddress(ip); err != nil {
		return err
	}
	if err := sub.claimer.Claim(ctx, ip, epoch); err != nil {
		return errors.Join(err, sub.net.RemoveAddress(ip))
	}
	if sub.spec.Claim == "arp" || sub.spec.Claim == "" {
		return hostnet.ClaimARP{Responder: sub.responder, Probe: probeFor}.Claim(ctx, ip, epoch)
	}
	return sub.responder.Own(ip)
}

// probeFor is how long the subnet is asked whether somebody else has an
// address before it is taken (RFC 5227 section 2.1 takes longer; an operator
// who restarts an egress does not want to).
const probeFor = 200 * time.Millisecond
