package main

import (
	"errors"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/machine"
)

func keyCommand() *cli.Command {
	return &cli.Command{
		Name:  "key",
		Usage: "print this machine's WireGuard public keys",
		Description: "One key per role that the configuration gives this machine, made the first time. Other\n" +
			"machines name it under machines: (docs/config.md). The private key stays in state_dir.\n\n" +
			"Example:\n   spillway key --config /etc/spillway/spillway.yaml",
		Flags: []cli.Flag{configFlag(), jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := errors.Join(noArgs(c), required(c, "config")); err != nil {
				return err
			}
			keys, err := machine.PublicKeys(c.String("config"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, keys)
			}
			var rows [][]string
			for _, role := range slices.Sorted(maps.Keys(keys)) {
				rows = append(rows, []string{role, keys[role]})
			}
			return table(c.App.Writer, "ROLE\tPUBLIC KEY", rows)
		},
	}
}
