package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/demo"
	"github.com/fe919326/spillway/internal/lab/netlab"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "show the main job on this machine, narrated",
		Description: "Builds a provider network, a host with three tasks and a private subnet out of network\n" +
			"namespaces, runs spillway in them, and checks every line it prints. It touches nothing\n" +
			"outside these namespaces. As a plain user it makes a user namespace first.\n\n" +
			"Example:\n   spillway demo\n   spillway demo --json",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.StringFlag{Name: "dir", Hidden: true, Usage: "where the demo keeps its files"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return demoInUserNamespace(c)
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			cfg := demo.Config{Exe: exe, Out: c.App.Writer, Dir: c.String("dir")}
			if c.Bool("json") {
				cfg.Out = nil
			}
			r, err := demo.Run(c.Context, cfg)
			if c.Bool("json") {
				if r.Checks == nil {
					r.Checks = []demo.Check{}
				}
				if jerr := printJSON(c.App.Writer, r); err == nil {
					err = jerr
				}
			}
			if err == nil && !r.OK {
				err = errors.New("some checks failed")
			}
			return err
		},
	}
}

// demoInUserNamespace runs the demo as root of a user namespace of its own,
// for callers who are not root.
func demoInUserNamespace(c *cli.Context) error {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: the demo needs TUN devices: run it as root, or make /dev/net/tun usable by you (mode 0666, as most systems have it)", err)
	}
	tun.Close()
	dir, err := os.MkdirTemp("", "spillway-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"demo", "--dir", dir}
	if c.Bool("json") {
		args = append(args, "--json")
	}
	cmd, err := netlab.UserNamespaceCommand(c.Context, dir, args...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return errTold{exit.ExitCode()}
	case err != nil:
		return fmt.Errorf("make a user namespace: %w: run the demo as root, or allow user namespaces (`spillway doctor` tells more)", err)
	}
	return nil
}
