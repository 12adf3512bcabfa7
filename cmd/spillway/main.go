// Command spillway gives tasks a one-way door into a private subnet.
//
// Every verb lives in a file of its own: it turns flags into a configuration
// and calls the library. Only this package reads the environment, handles
// signals and exits.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/lab/netlab"
)

// Exit codes: the contract with scripts.
const (
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks an error in how the command was called.
type errUsage struct{ error }

// errTold is a failure that the user has been told of already.
type errTold struct{ code int }

func (e errTold) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func usagef(format string, a ...any) error { return errUsage{fmt.Errorf(format, a...)} }

func main() {
	netlab.Reexec() // in a process that the demo started in a user namespace
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args))
}

// run runs the command and returns its exit code.
func run(ctx context.Context, args []string) int {
	app := newApp()
	err := app.RunContext(ctx, args)
	var usage errUsage
	var told errTold
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "spillway: %v\n", usage) // the first of several is enough
		return exitUsage
	case errors.As(err, &told):
		return told.code
	}
	fmt.Fprintf(os.Stderr, "spillway: %v\n", err)
	return exitFailed
}

func newApp() *cli.App {
	app := &cli.App{
		Name:  "spillway",
		Usage: "a one-way door for tasks into a private subnet",
		Description: "A task gets a secondary network interface. What it starts leaves by that interface,\n" +
			"through a WireGuard tunnel, to a shared endpoint of a private subnet, which puts it on\n" +
			"the subnet behind one private address. Nothing can come in that way.\n\n" +
			"Try it:  spillway demo",
		Version:                version(),
		HideHelpCommand:        true,
		Suggest:                true,
		EnableBashCompletion:   true,
		ExitErrHandler:         func(*cli.Context, error) {},
		UseShortOptionHandling: false,
		OnUsageError:           func(_ *cli.Context, err error, _ bool) error { return errUsage{err} },
		CommandNotFound:        nil,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("no verb %q; `spillway --help` lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			demoCommand(),
			upCommand(),
			roleCommand("egress"),
			roleCommand("host"),
			attachCommand(),
			detachCommand(),
			taskCommand(),
			endpointCommand(),
			flowsCommand(),
			wgConfigCommand(),
			statusCommand(),
			reloadCommand(),
			keyCommand(),
			doctorCommand(),
			cleanupCommand(),
		},
	}
	for _, c := range app.Commands {
		strict(c)
	}
	return app
}

// strict makes a command refuse flags and arguments it does not know, and say
// which flags it needs. (The cli package would print its help to standard
// output, which is for answers, and fail as if the command had been tried.)
func strict(c *cli.Command) {
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return errUsage{err} }
	c.HideHelpCommand = true
	var needed []string
	for _, f := range c.Flags {
		if s, ok := f.(*cli.StringFlag); ok && s.Required {
			s.Required = false
			needed = append(needed, s.Name)
		}
	}
	name := c.Name
	c.Before = func(ctx *cli.Context) error {
		for _, f := range needed {
			if ctx.String(f) == "" {
				return usagef("%s needs --%s; `spillway %s --help` has an example", name, f, name)
			}
		}
		return nil
	}
	for _, sub := range c.Subcommands {
		strict(sub)
	}
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return usagef("no verb %q under %q; `spillway %s --help` lists them", ctx.Args().First(), name, name)
			}
			return cli.ShowSubcommandHelp(ctx)
		}
	}
}
