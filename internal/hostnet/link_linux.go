package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is a network interface as it was when asked for.
type Link struct {
	Name   string
	Index  int
	MTU    int // bytes
	MAC    net.HardwareAddr
	Up     bool // administratively up
	Ready  bool // up and with carrier
	Kind   string
	Peer   int // index of the peer (veth) or parent (macvlan); 0: none
	PeerNS int // namespace id of Peer in this namespace (netns ids, RTM_GETNSID); -1: this namespace
}

// ready are the flags of a link that carries packets, IPv6 included: the kernel
// acts on a carrier that came back up to a second later, and says so by
// IFF_RUNNING.
const ready = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	return Link{
		Name: a.Name, Index: a.Index, MTU: a.MTU, MAC: a.HardwareAddr, Kind: l.Type(),
		Up: a.RawFlags&unix.IFF_UP != 0, Ready: a.RawFlags&ready == ready,
		Peer: a.ParentIndex, PeerNS: a.NetNsID,
	}
}

// ErrNoLink is returned for an interface that does not exist.
var ErrNoLink = errors.New("no such interface")

func (c *Conn) byName(name string) (netlink.Link, error) {
	l, err := c.h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("interface %s: %w", name, ErrNoLink)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}

// Link returns the interface called name, or an error that wraps ErrNoLink.
func (c *Conn) Link(name string) (Link, error) {
	l, err := c.byName(name)
	if err != nil {
		return Link{}, err
	}
	return linkOf(l), nil
}

// LinkByIndex returns the interface with an index, or an error that wraps
// ErrNoLink.
func (c *Conn) LinkByIndex(index int) (Link, error) {
	l, err := c.h.LinkByIndex(index)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return Link{}, fmt.Errorf("interface %d: %w", index, ErrNoLink)
	}
	if err != nil {
		return Link{}, fmt.Errorf("interface %d: %w", index, err)
	}
	return linkOf(l), nil
}

// Links returns every interface of the namespace.
func (c *Conn) Links() ([]Link, error) {
	ls, err := c.h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := make([]Link, len(ls))
	for i, l := range ls {
		out[i] = linkOf(l)
	}
	return out, nil
}

// AddVeth creates a pair: name here and peer in peerNS (nil: here too), both
// with this MTU (0: the kernel's 1500). Both are down.
func (c *Conn) AddVeth(name, peer string, peerNS *NS, mtu int) error {
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: peer}
	v.Name = name
	if mtu > 0 {
		v.MTU, v.PeerMTU = mtu, uint32(mtu)
	}
	if peerNS != nil {
		v.PeerNamespace = netlink.NsFd(peerNS.FD())
	}
	if err := c.h.LinkAdd(v); err != nil {
		return fmt.Errorf("create veth %s - %s: %w", name, peer, err)
	}
	return nil
}

// AddBridge creates an Ethernet bridge without spanning tree and without
// multicast snooping, so that neighbour discovery needs no MLD.
func (c *Conn) AddBridge(name string) error {
	b := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	b.Name = name
	off := false
	b.MulticastSnooping = &off
	if err := c.h.LinkAdd(b); err != nil {
		return fmt.Errorf("create bridge %s: %w", name, err)
	}
	return nil
}

// AddMacvlan creates a macvlan (bridge mode) of parent and puts it into ns
// (nil: here).
func (c *Conn) AddMacvlan(name, parent string, ns *NS) error {
	p, err := c.byName(parent)
	if err != nil {
		return err
	}
	m := &netlink.Macvlan{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.MACVLAN_MODE_BRIDGE}
	m.Name, m.ParentIndex = name, p.Attrs().Index
	if ns != nil {
		m.Namespace = netlink.NsFd(ns.FD())
	}
	if err := c.h.LinkAdd(m); err != nil {
		return fmt.Errorf("create macvlan %s of %s: %w", name, parent, err)
	}
	return nil
}

// DeleteLink removes an interface; one that does not exist is no error.
func (c *Conn) DeleteLink(name string) error {
	l, err := c.byName(name)
	if errors.Is(err, ErrNoLink) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := gone(c.h.LinkDel(l)); err != nil {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// change runs one kernel call on a link, with context for its error.
func (c *Conn) change(name, what string, fn func(netlink.Link) error) error {
	l, err := c.byName(name)
	if err != nil {
		return err
	}
	if err := fn(l); err != nil {
		return fmt.Errorf("interface %s: %s: %w", name, what, err)
	}
	return nil
}

// SetUp brings an interface up.
func (c *Conn) SetUp(name string) error { return c.change(name, "set up", c.h.LinkSetUp) }

// SetDown takes an interface down.
func (c *Conn) SetDown(name string) error { return c.change(name, "set down", c.h.LinkSetDown) }

// SetMTU sets an interface's MTU in bytes.
func (c *Conn) SetMTU(name string, mtu int) error {
	return c.change(name, "set MTU", func(l netlink.Link) error { return c.h.LinkSetMTU(l, mtu) })
}

// SetMAC sets an interface's Ethernet address.
func (c *Conn) SetMAC(name string, mac net.HardwareAddr) error {
	return c.change(name, "set MAC", func(l netlink.Link) error { return c.h.LinkSetHardwareAddr(l, mac) })
}

// SetMaster puts an interface into a bridge.
func (c *Conn) SetMaster(name, bridge string) error {
	b, err := c.byName(bridge)
	if err != nil {
		return err
	}
	return c.change(name, "join "+bridge, func(l netlink.Link) error { return c.h.LinkSetMaster(l, b) })
}

// Rename gives an interface another name. Kernels before 6.2 want it down.
func (c *Conn) Rename(name, to string) error {
	return c.change(name, "rename to "+to, func(l netlink.Link) error { return c.h.LinkSetName(l, to) })
}

// MoveLink moves an interface into another namespace. The kernel takes it down
// and drops its addresses and routes.
func (c *Conn) MoveLink(name string, to *NS) error {
	return c.change(name, "move to another namespace", func(l netlink.Link) error { return c.h.LinkSetNsFd(l, to.FD()) })
}

// WaitReady waits until an interface is up and has carrier, or ctx ends. It
// listens to the kernel's announcements and does not poll.
func (c *Conn) WaitReady(ctx context.Context, name string) error {
	updates := make(chan netlink.LinkUpdate, 16)
	stop := make(chan struct{})
	var failed error
	err := c.ns.Do(func() error {
		return netlink.LinkSubscribeWithOptions(updates, stop, netlink.LinkSubscribeOptions{
			ErrorCallback: func(error) {},
		})
	})
	if err != nil {
		return fmt.Errorf("wait for interface %s: %w", name, err)
	}
	defer func() {
		close(stop)
		for range updates { // the subscription's goroutine ends by closing it
		}
	}()
	ask := time.NewTicker(time.Second) // in case an announcement was lost
	defer ask.Stop()
	for {
		l, err := c.Link(name)
		if err == nil && l.Ready {
			return nil
		}
		failed = err
		select {
		case <-ctx.Done():
			if failed != nil {
				return fmt.Errorf("wait for interface %s: %w", name, errors.Join(ctx.Err(), failed))
			}
			return fmt.Errorf("wait for interface %s: no carrier: %w", name, ctx.Err())
		case _, ok := <-updates:
			if !ok {
				return fmt.Errorf("wait for interface %s: subscription ended", name)
			}
		case <-ask.C:
		}
	}
}
