package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fe919326/spillway/internal/hostnet"
)

// The nftables tables of the cloud profile.
const (
	firewallTable = "lab-firewall"
	fabricTable   = "lab-fabric"
)

// cloud makes the subnet take addresses only from whom they are bound to.
func (l *Lab) cloud() error {
	if l.Config.Profile != Cloud {
		return nil
	}
	var ports []string
	for i := range l.Egress {
		ports = append(ports, egressPort(i))
	}
	if err := l.Subnet.Conn.FabricPorts(fabricTable, ports); err != nil {
		return err
	}
	for i := range l.Egress {
		own := []netip.Addr{EgressSubnet4(i)}
		if l.Config.V6 {
			own = append(own, EgressSubnet6(i))
		}
		for _, a := range own {
			if err := l.Subnet.Conn.FabricBind(fabricTable, egressPort(i), a, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// Bind gives an address of the subnet to egress i (from 0), as a cloud's API
// would: the fabric takes it from there, and everybody's packets to it go
// there. The address is taken from every other egress first. Cloud profile
// only.
func (l *Lab) Bind(i int, a netip.Addr) error {
	if l.Config.Profile != Cloud {
		return errors.New("netlab: only the cloud profile binds addresses")
	}
	return withFabric(l.Dir, func(f *fabric) error { return f.bind(i, a) })
}

// Unbind takes an address from egress i.
func (l *Lab) Unbind(i int, a netip.Addr) error {
	if l.Config.Profile != Cloud {
		return errors.New("netlab: only the cloud profile binds addresses")
	}
	return withFabric(l.Dir, func(f *fabric) error { return f.unbind(i, a) })
}

// FirewallDrops is how many packets the underlay's firewall refused (cloud).
func (l *Lab) FirewallDrops() (uint64, error) { return l.Und.Conn.FabricDrops(firewallTable, false) }

// FabricDrops is how many frames the subnet's fabric refused (cloud).
func (l *Lab) FabricDrops() (uint64, error) { return l.Subnet.Conn.FabricDrops(fabricTable, true) }

// fabric is the subnet as the cloud's API sees it. It is opened from the lab's
// directory alone, because a claim runs in a process of its own.
type fabric struct {
	state  state
	subnet *hostnet.Conn
	boxes  []*hostnet.Conn // that keep a neighbour entry: servers, then the router
	links  []string        // their interfaces
}

func withFabric(dir string, fn func(*fabric) error) (err error) {
	var open []func() error
	defer func() {
		for i := len(open) - 1; i >= 0; i-- {
			err = errors.Join(err, open[i]())
		}
	}()
	conn := func(name string) (*hostnet.Conn, error) {
		ns, err := hostnet.OpenNS(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		open = append(open, ns.Close)
		c, err := ns.Open()
		if err == nil {
			open = append(open, c.Close)
		}
		return c, err
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	f := &fabric{}
	if err := json.Unmarshal(b, &f.state); err != nil {
		return err
	}
	if f.subnet, err = conn("subnet"); err != nil {
		return err
	}
	for i := range f.state.Servers {
		c, err := conn(numbered("srv", i))
		if err != nil {
			return err
		}
		f.boxes, f.links = append(f.boxes, c), append(f.links, ServerLink)
	}
	f.boxes, f.links = append(f.boxes, f.subnet), append(f.links, SubnetBr)
	return fn(f)
}

func (f *fabric) bind(i int, a netip.Addr) error {
	if i < 0 || i >= len(f.state.MACs) {
		return fmt.Errorf("no egress %d", i)
	}
	for o := range len(f.state.MACs) {
		if o != i {
			if err := f.subnet.FabricBind(fabricTable, egressPort(o), a, false); err != nil {
				return err
			}
		}
	}
	if err := f.subnet.FabricBind(fabricTable, egressPort(i), a, true); err != nil {
		return err
	}
	mac := f.state.MACs[i]
	for n, c := range f.boxes {
		if err := c.SetNeigh(f.links[n], a, mac); err != nil {
			return err
		}
	}
	return nil
}

func (f *fabric) unbind(i int, a netip.Addr) error {
	if i < 0 || i >= len(f.state.MACs) {
		return fmt.Errorf("no egress %d", i)
	}
	if err := f.subnet.FabricBind(fabricTable, egressPort(i), a, false); err != nil {
		return err
	}
	for n, c := range f.boxes {
		ns, err := c.Neighs(f.links[n])
		if err != nil {
			return err
		}
		for _, e := range ns {
			if e.Addr == a && e.MAC.String() == f.state.MACs[i].String() {
				if err := c.DelNeigh(f.links[n], a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bound reports whether the subnet's router sends packets for a to egress i.
func (f *fabric) bound(i int, a netip.Addr) (bool, error) {
	ns, err := f.subnet.Neighs(SubnetBr)
	if err != nil {
		return false, err
	}
	for _, e := range ns {
		if e.Addr == a && e.Permanent && e.MAC.String() == f.state.MACs[i].String() {
			return true, nil
		}
	}
	return false, nil
}

const claimVerb = "spillway-netlab-claim"

// ClaimProgram writes a program that binds addresses to egress i when called
// with "claim|release|check ADDRESS EPOCH" (the contract of the exec claim)
// and returns its path. It runs this process's own executable, whose main (or
// TestMain) must call Reexec first.
func (l *Lab) ClaimProgram(i int) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	path := filepath.Join(l.Dir, fmt.Sprintf("claim-egress%d", i+1))
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s %s %d \"$@\"\n", quote(self), claimVerb, quote(l.Dir), i)
	return path, os.WriteFile(path, []byte(script), 0o755)
}

// claimMain is ClaimProgram's process: DIR EGRESS claim|release|check ADDRESS
// EPOCH.
func claimMain(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("want claim|release|check ADDRESS EPOCH, got %q", args)
	}
	i, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(args[3])
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(args[4], 10, 64); err != nil {
		return fmt.Errorf("epoch: %w", err)
	}
	return withFabric(args[0], func(f *fabric) error {
		switch args[2] {
		case "claim":
			return f.bind(i, a)
		case "release":
			return f.unbind(i, a)
		case "check":
			ok, err := f.bound(i, a)
			if err == nil && !ok {
				err = fmt.Errorf("%s is not bound to egress %d", a, i+1)
			}
			return err
		}
		return fmt.Errorf("unknown verb %q", args[2])
	})
}
