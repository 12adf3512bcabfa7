//go:build !linux

package device

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

func errUnsupported(what string) error {
	return fmt.Errorf("%s on %s: %w: use the proxy or the library's dialer, which need no interface",
		what, runtime.GOOS, errors.ErrUnsupported)
}

// TUN is a Linux TUN interface. There is none on this system.
type TUN struct{}

// OpenTUN returns an error that wraps errors.ErrUnsupported.
func OpenTUN(TUNConfig) (*TUN, error) { return nil, errUnsupported("open TUN") }

// FromFD returns an error that wraps errors.ErrUnsupported.
func FromFD(int) (*TUN, error) { return nil, errUnsupported("adopt TUN descriptor") }

// Name returns "".
func (t *TUN) Name() string { return "" }

// File returns an error that wraps errors.ErrUnsupported.
func (t *TUN) File() (*os.File, error) { return nil, errUnsupported("share TUN descriptor") }

// SetPersist returns an error that wraps errors.ErrUnsupported.
func (t *TUN) SetPersist(Persistence) error { return errUnsupported("persist TUN") }

// Close does nothing.
func (t *TUN) Close() error { return nil }

// Group serves Linux TUN interfaces. There are none on this system.
type Group struct{}

// NewGroup returns an error that wraps errors.ErrUnsupported.
func NewGroup(Config) (*Group, error) { return nil, errUnsupported("poll TUN interfaces") }

// Add returns an error that wraps errors.ErrUnsupported.
func (g *Group) Add(uint32, *TUN) error { return errUnsupported("add TUN") }

// Remove returns ErrNoPort.
func (g *Group) Remove(port uint32) error { return fmt.Errorf("remove port %d: %w", port, ErrNoPort) }

// Stats returns false.
func (g *Group) Stats(uint32) (PortStats, bool) { return PortStats{}, false }

// NoRoute returns 0.
func (g *Group) NoRoute() uint64 { return 0 }

// Read returns os.ErrClosed.
func (g *Group) Read(b *Batch) error {
	b.Reset()
	return os.ErrClosed
}

// Write drops everything.
func (g *Group) Write(*Batch) {}

// Close does nothing.
func (g *Group) Close() error { return nil }

var _ Link = (*Group)(nil)
