package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Claimer takes an endpoint's address on its subnet. epoch is the ownership
// epoch: a larger one always wins. Claim and Release are idempotent; Check
// returns nil while the address is ours as far as the subnet can tell.
// Implementations are safe for concurrent use.
type Claimer interface {
	Claim(ctx context.Context, a netip.Addr, epoch uint64) error
	Release(ctx context.Context, a netip.Addr, epoch uint64) error
	Check(ctx context.Context, a netip.Addr, epoch uint64) error
}

// ClaimNone is the claim of addresses that an operator pinned to this machine:
// nothing is done.
type ClaimNone struct{}

// Claim implements Claimer.
func (ClaimNone) Claim(context.Context, netip.Addr, uint64) error { return nil }

// Release implements Claimer.
func (ClaimNone) Release(context.Context, netip.Addr, uint64) error { return nil }

// Check implements Claimer.
func (ClaimNone) Check(context.Context, netip.Addr, uint64) error { return nil }

// ClaimExec claims by running a program, for example one that calls a cloud's
// API:
//
//	PATH claim|release|check ADDRESS EPOCH
//
// with PATH, HOME and LANG as its only environment and no input. Exit code 0
// is success; what it wrote last to its error output is part of the error
// otherwise.
type ClaimExec struct {
	Path    string
	Timeout time.Duration // 0 means 10 s
}

// Claim implements Claimer.
func (c ClaimExec) Claim(ctx context.Context, a netip.Addr, epoch uint64) error {
	return c.run(ctx, "claim", a, epoch)
}

// Release implements Claimer.
func (c ClaimExec) Release(ctx context.Context, a netip.Addr, epoch uint64) error {
	return c.run(ctx, "release", a, epoch)
}

// Check implements Claimer.
func (c ClaimExec) Check(ctx context.Context, a netip.Addr, epoch uint64) error {
	return c.run(ctx, "check", a, epoch)
}

func (c ClaimExec) run(ctx context.Context, verb string, a netip.Addr, epoch uint64) error {
	limit := c.Timeout
	if limit == 0 {
		limit = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Path, verb, a.String(), strconv.FormatUint(epoch, 10))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C"}
	cmd.Dir = "/"
	// A child of the program that keeps the output open must not hold us.
	cmd.WaitDelay = time.Second
	var out tail
	cmd.Stderr = &out
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	if text := out.text(); text != "" {
		return fmt.Errorf("%s %s %s: %w: %s", c.Path, verb, a, err, text)
	}
	return fmt.Errorf("%s %s %s: %w", c.Path, verb, a, err)
}

// tail keeps the last bytes written to it.
type tail struct{ b []byte }

const tailMax = 1024

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - tailMax; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// text is what was kept, on one line and printable.
func (t *tail) text() string {
	s := strings.ToValidUTF8(string(bytes.TrimSpace(t.b)), "?")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f:
			return '?'
		}
		return r
	}, s)
}
