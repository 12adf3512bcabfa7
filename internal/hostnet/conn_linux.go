package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Conn speaks to the kernel inside one namespace: rtnetlink, nftables, and the
// ioctls that have no netlink form. Its sockets are opened once and kept, so
// that a sequence of calls costs one system call round trip each. A Conn is
// not safe for concurrent use.
type Conn struct {
	ns   *NS // borrowed: the namespace it was opened from
	h    *netlink.Handle
	nft  *nftables.Conn // nil until the first use
	ioct int            // AF_INET datagram socket for ioctls; -1 when not open
}

// Open opens a Conn inside the namespace. The NS must stay open as long as the
// Conn is.
func (n *NS) Open() (*Conn, error) {
	c := &Conn{ns: n, ioct: -1}
	err := n.Do(func() error {
		var err error
		c.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return c, nil
}

// Close closes the sockets.
func (c *Conn) Close() error {
	c.h.Close()
	if c.ioct >= 0 {
		unix.Close(c.ioct)
		c.ioct = -1
	}
	if c.nft != nil {
		err := c.nft.CloseLasting()
		c.nft = nil
		return err
	}
	return nil
}

// NS is the namespace the Conn works in.
func (c *Conn) NS() *NS { return c.ns }

// filter returns the nftables connection, opening it at first use.
func (c *Conn) filter() (*nftables.Conn, error) {
	if c.nft != nil {
		return c.nft, nil
	}
	err := c.ns.Do(func() error {
		var err error
		c.nft, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *mdlayher.Conn) error {
			// Every message of a batch is acknowledged and echoed before the
			// first is read: the default buffer would overflow.
			return nl.SetReadBuffer(2 << 20)
		}))
		return err
	})
	if err != nil {
		c.nft = nil
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c.nft, nil
}

// ioctl returns a socket for network ioctls, opening it at first use.
func (c *Conn) ioctl() (int, error) {
	if c.ioct >= 0 {
		return c.ioct, nil
	}
	err := c.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			c.ioct = fd
		}
		return err
	})
	return c.ioct, err
}

// exists turns "already there" into success, for idempotent creation.
func exists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// gone turns "not there" into success, for idempotent removal.
func gone(err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	return err
}

// family is the kernel's number for a's address family.
func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// families are the two address families, in the order everything is done.
var families = [2]int{unix.AF_INET, unix.AF_INET6}

// noFamily reports an error that says the kernel has no IPv6 (or no IPv4):
// then there is nothing to protect in that family.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
