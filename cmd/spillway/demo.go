package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/demo"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "show the main job on this machine, narrated",
		Description: "Builds a provider network, a host with three tasks and a private subnet out of network\n" +
			"namespaces, runs spillway in them, and checks every line it prints. It touches nothing\n" +
			"outside these namespaces. As a plain user it makes a user namespace first.\n\n" +
			"Example:\n   spillway demo\n   spillway demo --json",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			cfg := demo.Config{Exe: exe, Out: c.App.Writer}
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
