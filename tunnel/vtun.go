package tunnel

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// vtun is the virtual TUN: the inner end of wireguard-go's device.
type vtun struct {
	mtu    int
	tx     *txRing
	rx     *rxRing
	events chan tun.Event
	close  func() // ends both rings
	once   sync.Once
}

var _ tun.Device = (*vtun)(nil)

// File implements tun.Device: there is none.
func (v *vtun) File() *os.File { return nil }

// Read implements tun.Device.
func (v *vtun) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return v.tx.read(bufs, sizes, offset)
}

// Write implements tun.Device.
func (v *vtun) Write(bufs [][]byte, offset int) (int, error) { return v.rx.write(bufs, offset) }

// MTU implements tun.Device.
func (v *vtun) MTU() (int, error) { return v.mtu, nil }

// Name implements tun.Device.
func (v *vtun) Name() (string, error) { return "spillway", nil }

// Events implements tun.Device. Stock brings the device up itself; nothing is
// ever sent.
func (v *vtun) Events() <-chan tun.Event { return v.events }

// Close implements tun.Device.
func (v *vtun) Close() error {
	v.once.Do(func() {
		v.close()
		close(v.events)
	})
	return nil
}

// BatchSize implements tun.Device.
func (v *vtun) BatchSize() int { return deviceBatch }
