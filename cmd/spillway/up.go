package main

import (
	"errors"
	"os"
	"os/signal"
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

// gcPercent is how far a role's Go heap may grow between two collections, in
// percent. Packets under way lie in buffers of 64 KB of which hardly a page is
// used: to the collector they are a large heap, and with the usual 100 % the
// garbage could grow as large. The flow tables are mapped and do not count. A
// memory limit would not do: it counts the unused pages too.
const gcPercent = 20

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
			}
			cfg := machine.RoleConfig{Path: c.String("config"), Logger: log}
			if name == string(engine.RoleHost) {
				return machine.RunHost(c.Context, cfg)
			}
			return machine.RunEgress(c.Context, cfg)
		},
	}
}
