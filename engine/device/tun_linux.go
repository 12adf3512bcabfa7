package device

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
)

const tunPath = "/dev/net/tun"

// Offload bits of TUNSETOFFLOAD (linux/if_tun.h). TSO_ECN stays off: without
// it the kernel cuts super-packets that carry CWR itself, so that CWR stands
// on exactly one segment whatever the far end's segmenter does (RFC 3168).
const (
	tunCsum = 0x01 // TUN_F_CSUM
	tunTSO4 = 0x02 // TUN_F_TSO4
	tunTSO6 = 0x04 // TUN_F_TSO6
	tunUSO4 = 0x20 // TUN_F_USO4, Linux 6.2
	tunUSO6 = 0x40 // TUN_F_USO6, Linux 6.2
)

// TUN is an open TUN interface. It is safe for concurrent use. It does nothing
// by itself: give it to a Group.
type TUN struct {
	name  string // immutable after OpenTUN
	front int    // immutable: length of the virtio-net header, 0 without one

	fd fdRef
	// tso and uso say whether the kernel takes super-packets from us. They go
	// off for good when it refuses one.
	tso, uso atomic.Bool
}

// OpenTUN creates the TUN interface c.Name, or attaches to it if it is there
// and nobody else has it, in the network namespace of the calling OS thread.
// It is neither up nor has it addresses; those are the caller's.
//
// The open descriptor keeps the namespace it was opened in alive. To notice
// the end of a task's namespace, open the interface in one's own and move it:
// then it dies with the task's, and its port goes down.
//
// The error wraps ErrNoTUN, ErrPermission, ErrBusy or ErrNotTUN where one of
// them is the cause.
func OpenTUN(c TUNConfig) (*TUN, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("open TUN %q: %w", c.Name, err)
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open TUN %q: %w", c.Name, openError(err))
	}
	t, err := c.attach(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open TUN %q: %w", c.Name, err)
	}
	return t, nil
}

func (c *TUNConfig) check() error {
	switch {
	case c.Name == "" || len(c.Name) >= unix.IFNAMSIZ || strings.ContainsAny(c.Name, "/ \t\n\x00"):
		return errors.New("an interface name has 1 to 15 bytes, no space and no slash")
	case c.Offload > OffloadNone || c.Persistence > Persistent:
		return errors.New("unknown Offload or Persistence")
	}
	return nil
}

func openError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %s is missing: load the tun module, or give the container the device (--device %s): %w",
			ErrNoTUN, tunPath, tunPath, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this user may not open %s: run as root, or make it mode 0666: %w", ErrPermission, tunPath, err)
	}
	return fmt.Errorf("%s: %w", tunPath, err)
}

// attach makes fd the interface.
func (c *TUNConfig) attach(fd int) (*TUN, error) {
	ifr, err := unix.NewIfreq(c.Name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := ioctlIfreq(fd, unix.TUNSETIFF, ifr); {
	case err == nil:
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: making an interface needs CAP_NET_ADMIN in this network namespace: "+
			"run as root, or in a user namespace of your own: %w", ErrPermission, err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w: another process has it open: stop that, or choose another name: %w", ErrBusy, err)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("%w: there is an interface of this name that is no single-queue TUN: "+
			"remove it with ip link del, or choose another name: %w", ErrNotTUN, err)
	default:
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	for _, s := range []struct {
		req uint
		id  *uint32
	}{{unix.TUNSETOWNER, c.Owner}, {unix.TUNSETGROUP, c.Group}} {
		if s.id == nil {
			continue
		}
		if err := unix.IoctlSetInt(fd, s.req, int(*s.id)); err != nil {
			return nil, fmt.Errorf("set owner: %w", err)
		}
	}
	t, err := newTUN(fd, ifr.Name(), true, c.Offload)
	if err != nil {
		return nil, err
	}
	if c.Persistence == Persistent {
		if err := t.SetPersist(Persistent); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// newTUN finishes an attached descriptor. What it sets must be set again on
// every attach to a persistent interface.
func newTUN(fd int, name string, vnet bool, o Offload) (*TUN, error) {
	t := &TUN{name: name}
	t.fd.fd = fd
	if !vnet {
		return t, nil
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetLen); err != nil {
		return nil, fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	t.front = vnetLen
	set := func(bits int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, bits) }
	const tcp = tunCsum | tunTSO4 | tunTSO6
	switch {
	case o == OffloadNone:
		if err := set(0); err != nil {
			return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
		}
	case o == OffloadAll && set(tcp|tunUSO4|tunUSO6) == nil:
		t.tso.Store(true)
		t.uso.Store(true)
	default: // told so, or a kernel before 6.2
		if err := set(tcp); err != nil {
			return nil, fmt.Errorf("TUNSETOFFLOAD: %w", err)
		}
		t.tso.Store(true)
	}
	return t, nil
}

// FromFD adopts a descriptor of an attached TUN interface that someone else
// opened, with or without the virtio-net header (IFF_VNET_HDR), in whatever
// network namespace. On success it belongs to the TUN, and is non-blocking for
// all who share it; on error it stays the caller's. The error wraps ErrNotTUN
// if it is no TUN, or one whose packets carry the 4-byte information header
// (no IFF_NO_PI).
func FromFD(fd int) (*TUN, error) {
	// Room for the name is all that NewIfreq wants: the kernel fills it in.
	ifr, err := unix.NewIfreq("x")
	if err != nil {
		return nil, err
	}
	if err := ioctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return nil, fmt.Errorf("adopt descriptor %d: %w: it is not of %s, or not attached to an interface: %w",
			fd, ErrNotTUN, tunPath, err)
	}
	flags := ifr.Uint16()
	if flags&unix.IFF_TUN == 0 {
		return nil, fmt.Errorf("adopt descriptor %d: %w: %s is a TAP: open it with IFF_TUN", fd, ErrNotTUN, ifr.Name())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	t, err := newTUN(fd, ifr.Name(), flags&unix.IFF_VNET_HDR != 0, OffloadAll)
	if err != nil {
		return nil, fmt.Errorf("adopt descriptor %d: %w", fd, err)
	}
	if hasPacketInfo(fd) {
		return nil, fmt.Errorf("adopt descriptor %d: %w: %s has the packet information header: open it with IFF_NO_PI",
			fd, ErrNotTUN, ifr.Name())
	}
	return t, nil
}

// hasPacketInfo reports whether packets of fd begin with the 4-byte information
// header. TUNGETIFF cannot tell: its bit for IFF_NO_PI is also IFF_NOFILTER,
// which every TUN has. So a packet is written that is refused as neither IPv4
// nor IPv6 (EINVAL) without the header; with it, its protocol is 0 and the
// kernel takes it for nobody, or says that the interface is down.
func hasPacketInfo(fd int) bool {
	var junk [vnetLen + 8]byte
	_, err := unix.Write(fd, junk[:])
	return err != unix.EINVAL
}

// Name returns the interface name when t was opened.
func (t *TUN) Name() string { return t.name }

// File returns a duplicate of the descriptor, for another process: the
// interface stays attached for as long as it is open.
func (t *TUN) File() (*os.File, error) {
	fd, ok := t.fd.acquire()
	if !ok {
		return nil, os.ErrClosed
	}
	defer t.fd.release()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("share TUN %q: %w", t.name, err)
	}
	return os.NewFile(uintptr(dup), tunPath), nil
}

// SetPersist makes the interface stay after the last descriptor is closed, or
// no longer.
func (t *TUN) SetPersist(p Persistence) error {
	fd, ok := t.fd.acquire()
	if !ok {
		return os.ErrClosed
	}
	defer t.fd.release()
	on := 0
	if p == Persistent {
		on = 1
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, on); err != nil {
		return fmt.Errorf("persist TUN %q: %w", t.name, err)
	}
	return nil
}

// Close closes the descriptor; an interface that is not persistent disappears
// with it. It is idempotent. A TUN in a group is closed by the group.
func (t *TUN) Close() error {
	t.fd.close()
	return nil
}

// takes reports whether the kernel takes super-packets of this type from us.
func (t *TUN) takes(typ packet.GSOType) bool {
	switch typ {
	case packet.GSOTCP4, packet.GSOTCP6:
		return t.tso.Load()
	case packet.GSOUDP:
		return t.uso.Load()
	}
	return false
}

// refuse remembers that it does not.
func (t *TUN) refuse(typ packet.GSOType) {
	if typ == packet.GSOUDP {
		t.uso.Store(false)
		return
	}
	t.tso.Store(false)
}

func ioctlIfreq(fd int, req uintptr, ifr *unix.Ifreq) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(ifr))); errno != 0 {
		return errno
	}
	return nil
}

// fdRef is a descriptor that is closed by the last of its users, so that
// nobody reads or writes a number that means another file by then. The zero
// state is open with no users.
type fdRef struct {
	fd    int // immutable
	state atomic.Int64
}

// Bits in fdRef.state; below them the users are counted.
const (
	fdClosed = 1 << 32 // no new users
	fdGone   = 1 << 33 // the descriptor is closed
)

// acquire returns the descriptor for use until release.
func (r *fdRef) acquire() (int, bool) {
	if r.state.Add(1)&fdClosed != 0 {
		r.release()
		return -1, false
	}
	return r.fd, true
}

// release ends a use.
func (r *fdRef) release() {
	if r.state.Add(-1) == fdClosed && r.state.CompareAndSwap(fdClosed, fdClosed|fdGone) {
		unix.Close(r.fd)
	}
}

// close ends all further use. The caller counts as a user meanwhile.
func (r *fdRef) close() {
	r.state.Add(1)
	r.state.Or(fdClosed)
	r.release()
}
