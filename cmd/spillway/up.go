package main

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/internal/machine"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "run every role the configuration names, supervised",
		Description: "Keeps the API's socket open and runs one child process per role. A role that ends is\n" +
			"started again; tasks stay attached and fail closed meanwhile.\n\n" +
			"Example:\n   spillway up --config /etc/spillway/spillway.yaml",
		Flags: append([]cli.Flag{configFlag()}, logFlags()...),
		Action: func(c *cli.Context) error {
			if err := errors.Join(noArgs(c), required(c, "config")); err != nil {
				return err
			}
			log, err := logger(c)
			if err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			args := []string{"--log-level", c.String("log-level")}
			if c.Bool("log-json") {
				args = append(args, "--log-json")
			}
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			return machine.Up(c.Context, machine.UpConfig{Path: c.String("config"), Exe: exe, Logger: log, ChildArgs: args,
				Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}, Reload: reload})
		},
	}
}

// How a role's Go heap is collected. Packets under way lie in pooled buffers of
// 64 KB of which hardly a page is used: to the collector they are a large heap,
// and with the usual 100 % the garbage between two collections could grow as
// large, for real. But 20 % of a heap that is still small is so little that
// one collection would follow the other, each emptying the pools: so ballast,
// memory that is never touched and costs none, makes the heap look larger. A
// memory limit would not do: it counts the unused pages. Flow tables are
// mapped and do not count.
const (
	gcPercent = 20
	ballast   = 64 << 20 // bytes
)

func roleCommand(name string) *cli.Command {
	what := map[string]string{
		"egress": "run the egress role: own endpoint addresses on subnets",
		"host":   "run the host role: give tasks their secondary interface",
	}
	return &cli.Command{
		Name:  name,
		Usage: what[name],
		Description: "`spillway up` runs this; alone it waits for a snapshot on its own socket in run_dir.\n\n" +
			"Example:\n   spillway " + name + " --config /etc/spillway/spillway.yaml",
		Flags: append([]cli.Flag{configFlag()}, logFlags()...),
		Action: func(c *cli.Context) error {
			if err := errors.Join(noArgs(c), required(c, "config")); err != nil {
				return err
			}
			log, err := logger(c)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
				weight := make([]byte, ballast)
				defer runtime.KeepAlive(weight)
			}
			cfg := machine.RoleConfig{Path: c.String("config"), Logger: log}
			if name == string(engine.RoleHost) {
				return machine.RunHost(c.Context, cfg)
			}
			return machine.RunEgress(c.Context, cfg)
		},
	}
}
