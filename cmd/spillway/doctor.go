package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/internal/machine"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "tell what this machine lacks",
		Description: "Looks, changes nothing: devices, privileges, kernel settings and limits, each with what to\n" +
			"do about it. Exit code 1 if something is missing without which no role works.\n\n" +
			"Example:\n   spillway doctor",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			findings := machine.Examine()
			bad := 0
			var rows [][]string
			for _, f := range findings {
				if f.Level == machine.Missing {
					bad++
				}
				rows = append(rows, []string{string(f.Level), f.What, f.Detail})
			}
			var err error
			if c.Bool("json") {
				err = printJSON(c.App.Writer, findings)
			} else {
				err = table(c.App.Writer, "STATE\tWHAT\tDETAIL", rows)
			}
			if err == nil && bad > 0 {
				err = fmt.Errorf("%d of %d checks failed", bad, len(findings))
			}
			return err
		},
	}
}
