package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
)

func flowsCommand() *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "show tracked flows",
		Description: "Shows every live flow of this egress: who in the task side, as what on the subnet, to whom.\n" +
			"With --follow, flows and refusals as they come, until interrupted.\n\n" +
			"Example:\n   spillway flows\n   spillway flows --follow --json",
		Flags: []cli.Flag{
			apiFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per line"},
			&cli.BoolFlag{Name: "follow", Usage: "go on with new flows and refusals"},
		},
		Action: func(c *cli.Context) error {
			cl, err := connect(c)
			if err != nil {
				return err
			}
			follow := ""
			if c.Bool("follow") {
				follow = "1"
			}
			enc := json.NewEncoder(c.App.Writer)
			const row = "%-6s %-28s %-28s %-28s %-12s %-18s %10d %10d\n"
			if !c.Bool("json") {
				fmt.Fprintf(c.App.Writer, "%-6s %-28s %-28s %-28s %-12s %-18s %10s %10s\n",
					"PROTO", "INNER", "OUTSIDE", "REMOTE", "STATE", "REASON", "BYTES OUT", "BYTES IN")
			}
			return cl.Flows(c.Context, follow, func(f api.Flow) error {
				if c.Bool("json") {
					return enc.Encode(f)
				}
				outside := "-"
				if f.Outside.IsValid() {
					outside = f.Outside.String()
				}
				_, err := fmt.Fprintf(c.App.Writer, row, f.Protocol, f.Inner, outside, f.Remote,
					orDash(f.State), f.Reason, f.Bytes.Out, f.Bytes.In)
				return err
			})
		},
	}
}
