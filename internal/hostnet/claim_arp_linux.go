package hostnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ClaimARP claims addresses by answering for them on the link.
type ClaimARP struct {
	Responder *Responder // required; running
	// Probe is how long the link is asked whether somebody has the address
	// before it is taken. 0 means that it is taken at once, which is right
	// when ownership was decided elsewhere, as after a failover.
	Probe time.Duration
}

// AddressInUseError is returned by ClaimARP.Claim when somebody on the link has
// the address.
type AddressInUseError struct {
	Addr netip.Addr
	By   string // Ethernet address
}

// Error implements error.
func (e *AddressInUseError) Error() string {
	return fmt.Sprintf("address %s is in use by %s", e.Addr, e.By)
}

// Claim implements Claimer. The error for an address that somebody has is an
// *AddressInUseError.
func (c ClaimARP) Claim(ctx context.Context, a netip.Addr, _ uint64) error {
	if c.Probe > 0 && !slices.Contains(c.Responder.Owned(), a.Unmap()) {
		mac, err := c.Responder.Probe(ctx, a, c.Probe)
		if err != nil {
			return err
		}
		if mac != nil {
			return &AddressInUseError{Addr: a, By: mac.String()}
		}
	}
	return c.Responder.Own(a)
}

// Release implements Claimer.
func (c ClaimARP) Release(_ context.Context, a netip.Addr, _ uint64) error {
	c.Responder.Disown(a)
	return nil
}

// Check implements Claimer.
func (c ClaimARP) Check(_ context.Context, a netip.Addr, _ uint64) error {
	if !slices.Contains(c.Responder.Owned(), a.Unmap()) {
		return fmt.Errorf("address %s is not claimed here", a)
	}
	return nil
}
