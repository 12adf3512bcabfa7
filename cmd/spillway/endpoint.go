package main

import (
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

func endpointCommand() *cli.Command {
	return &cli.Command{
		Name: "endpoint", Usage: "look at shared egress endpoints",
		Subcommands: []*cli.Command{{
			Name: "list", Usage: "list the endpoints of this egress",
			Description: "An endpoint exists while a service needs its (subnet, set of groups): there is nothing\n" +
				"to create or delete.\n\nExample:\n   spillway endpoint list",
			Flags: []cli.Flag{apiFlag(), jsonFlag()},
			Action: func(c *cli.Context) error {
				cl, err := connect(c)
				if err != nil {
					return err
				}
				eps, err := cl.Endpoints(c.Context)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, eps)
				}
				var rows [][]string
				for _, e := range eps {
					var outside []string
					for _, a := range e.Addresses {
						if a.V4.IsValid() {
							outside = append(outside, a.V4.String())
						}
						if a.V6.IsValid() {
							outside = append(outside, a.V6.String())
						}
					}
					rows = append(rows, []string{e.ID, e.Account, e.Subnet, strings.Join(outside, ","),
						strings.Join(e.SecurityGroups, ","), strings.Join(e.Services, ","),
						strconv.Itoa(e.Flows), drops(e.Drops)})
				}
				return table(c.App.Writer, "ID\tACCOUNT\tSUBNET\tADDRESSES\tGROUPS\tSERVICES\tFLOWS\tREFUSED", rows)
			},
		}},
	}
}
