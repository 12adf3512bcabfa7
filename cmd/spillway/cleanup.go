package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/machine"
)

func cleanupCommand() *cli.Command {
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove everything spillway left in the kernel",
		Description: "Removes interfaces, rules, routes, guards and namespaces that a crashed spillway left on\n" +
			"this machine and in the tasks it knew. Keys, addresses and configuration stay. It refuses\n" +
			"while spillway runs. Afterwards tasks are no longer held back: what they start leaves by\n" +
			"their primary interface again.\n\n" +
			"Example:\n   spillway cleanup --config /etc/spillway/spillway.yaml",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "configuration `FILE` of the spillway that ran (default: its default directories)"},
			&cli.StringSliceFlag{Name: "netns", Usage: "clean the namespace at `PATH` too"},
			jsonFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			removed, err := machine.Cleanup(c.String("config"), c.StringSlice("netns"))
			if c.Bool("json") {
				if removed == nil {
					removed = []string{}
				}
				if jerr := printJSON(c.App.Writer, removed); err == nil {
					err = jerr
				}
				return err
			}
			for _, r := range removed {
				fmt.Fprintln(c.App.Writer, "removed", r)
			}
			return err
		},
	}
}
