package hostnet

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ethtool commands that switch offloads (linux/ethtool.h).
const (
	ethtoolSRXCSUM = 0x15
	ethtoolSTXCSUM = 0x17
	ethtoolSSG     = 0x19
	ethtoolSTSO    = 0x1f
	ethtoolSGSO    = 0x24
	ethtoolSGRO    = 0x2c
	ethtoolGTXCSUM = 0x16
	ethtoolGTSO    = 0x1e
	ethtoolGGSO    = 0x23
	ethtoolGGRO    = 0x2b
)

// Offloads says which offloads an interface has on.
type Offloads struct {
	TxChecksum bool
	TSO        bool // needs TxChecksum and scatter/gather, which follows it
	GSO        bool
	GRO        bool
}

type ethtoolValue struct{ cmd, data uint32 }

func (c *Conn) ethtool(link string, cmd, data uint32) (uint32, error) {
	fd, err := c.ioctl()
	if err != nil {
		return 0, err
	}
	if len(link) >= unix.IFNAMSIZ {
		return 0, fmt.Errorf("interface name %q: too long", link)
	}
	v := &ethtoolValue{cmd: cmd, data: data}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is 40 bytes
	}
	copy(req.name[:], link)
	req.data = unsafe.Pointer(v)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return 0, fmt.Errorf("interface %s: ethtool %#x: %w", link, cmd, errno)
	}
	return v.data, nil
}

// SetOffloads switches an interface's offloads. An offload that the driver
// does not know is no error when it shall be off.
func (c *Conn) SetOffloads(link string, o Offloads) error {
	bit := func(b bool) uint32 {
		if b {
			return 1
		}
		return 0
	}
	steps := []ethtoolValue{
		{ethtoolSTXCSUM, bit(o.TxChecksum)}, {ethtoolSSG, bit(o.TxChecksum)}, {ethtoolSTSO, bit(o.TSO)},
		{ethtoolSGSO, bit(o.GSO)}, {ethtoolSGRO, bit(o.GRO)}, {ethtoolSRXCSUM, bit(o.TxChecksum)},
	}
	for _, s := range steps {
		_, err := c.ethtool(link, s.cmd, s.data)
		fixed := errors.Is(err, unix.EOPNOTSUPP) && (s.data == 0 || s.cmd == ethtoolSRXCSUM)
		if err != nil && !fixed {
			return err
		}
	}
	return nil
}

// GetOffloads reads an interface's offloads.
func (c *Conn) GetOffloads(link string) (Offloads, error) {
	var o Offloads
	for _, g := range []struct {
		cmd uint32
		to  *bool
	}{{ethtoolGTXCSUM, &o.TxChecksum}, {ethtoolGTSO, &o.TSO}, {ethtoolGGSO, &o.GSO}, {ethtoolGGRO, &o.GRO}} {
		v, err := c.ethtool(link, g.cmd, 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return Offloads{}, err
		}
		*g.to = v != 0
	}
	return o, nil
}
