package hostnet

import "fmt"

// SetQueueLen sets how many packets the kernel keeps for an interface before
// it drops (txqueuelen). Unlike the ioctl it works in a user namespace too.
func (c *Conn) SetQueueLen(name string, packets int) error {
	l, err := c.byName(name)
	if err != nil {
		return err
	}
	if err := c.h.LinkSetTxQLen(l, packets); err != nil {
		return fmt.Errorf("interface %s: set queue length: %w", name, err)
	}
	return nil
}
