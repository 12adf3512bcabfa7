package bench

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Config says what to measure.
type Config struct {
	Rounds int // times that every mode is measured; default 3
	Secs   int // seconds of each single measurement; default 3
	// Modes and Scenarios are names to run; nil means all that can run.
	Modes     []string
	Scenarios []string
	// Nebula is the path of a nebula binary with nebula-cert beside it. ""
	// means that nebula is not measured.
	Nebula string
	// Spillway is the path of the spillway binary. Required for that mode.
	Spillway string
	// Self is this program, started again for load. Required.
	Self string
	// Log takes a line for every step. Nil means none.
	Log io.Writer
}

// The modes.
const (
	ModeKernel       = "kernel"        // no tunnel: the kernel forwards and masquerades
	ModeWireGuard    = "wireguard-go"  // wireguard-go at both ends, nft masquerade: the yardstick
	ModeNebula       = "nebula"        // AES-256-GCM, 10 MB sockets, nft masquerade
	ModeNebulaChaCha = "nebula-chacha" // the same with ChaCha20-Poly1305
	ModeSpillway     = "spillway"
)

// The scenarios. All but the last two run at MTU 1500 with veth offloads.
const (
	ScenarioBulk    = "bulk"        // 1 stream, up and down, CPU and memory
	ScenarioStreams = "streams"     // 4 streams, up and down
	ScenarioUDP     = "udp"         // 64-byte datagrams as fast as they go
	ScenarioUDPRate = "udp-rate"    // highest rate with at most 0.5 % loss
	ScenarioConnect = "connect"     // new TCP connections
	ScenarioLatency = "latency"     // requests, idle and beside a bulk flow
	ScenarioNoOffl  = "no-offloads" // bulk without veth offloads
	ScenarioJumbo   = "mtu-9000"    // bulk with 9000-byte links
)

// Scenarios lists all scenarios in the order in which they run.
func Scenarios() []string {
	return []string{ScenarioBulk, ScenarioStreams, ScenarioUDP, ScenarioUDPRate, ScenarioConnect, ScenarioLatency, ScenarioNoOffl, ScenarioJumbo}
}

func (c *Config) check() error {
	if c.Rounds == 0 {
		c.Rounds = 3
	}
	if c.Secs == 0 {
		c.Secs = 3
	}
	switch {
	case c.Rounds < 1 || c.Rounds > 100 || c.Secs < 1 || c.Secs > 600:
		return errors.New("bench: 1 to 100 rounds of 1 to 600 seconds")
	case c.Self == "":
		return errors.New("bench: Self is required")
	}
	all := []string{ModeKernel, ModeWireGuard, ModeNebula, ModeNebulaChaCha, ModeSpillway}
	if c.Modes == nil {
		c.Modes = []string{ModeKernel, ModeWireGuard}
		if c.Nebula != "" {
			c.Modes = append(c.Modes, ModeNebula, ModeNebulaChaCha)
		}
		if c.Spillway != "" {
			c.Modes = append(c.Modes, ModeSpillway)
		}
	}
	if c.Scenarios == nil {
		c.Scenarios = Scenarios()
	}
	if err := known("mode", c.Modes, all); err != nil {
		return err
	}
	if err := known("scenario", c.Scenarios, Scenarios()); err != nil {
		return err
	}
	for _, m := range c.Modes {
		if strings.HasPrefix(m, ModeNebula) && c.Nebula == "" {
			return fmt.Errorf("bench: mode %s needs the path of a nebula binary", m)
		}
		if m == ModeSpillway && c.Spillway == "" {
			return fmt.Errorf("bench: mode %s needs the path of a spillway binary", m)
		}
	}
	return nil
}

func known(what string, got, all []string) error {
	for _, g := range got {
		if !slices.Contains(all, g) {
			return fmt.Errorf("bench: no %s %q; there are %s", what, g, strings.Join(all, ", "))
		}
	}
	return nil
}

func (c *Config) secs() time.Duration { return time.Duration(c.Secs) * time.Second }

func (c *Config) logf(format string, args ...any) {
	if c.Log != nil {
		fmt.Fprintf(c.Log, format+"\n", args...)
	}
}
