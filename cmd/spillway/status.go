package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "tell how the roles of this machine are",
		Description: "With --wait it returns as soon as every role works, or fails after --timeout.\n\n" +
			"Example:\n   spillway status --wait",
		Flags: []cli.Flag{
			apiFlag(), jsonFlag(),
			&cli.BoolFlag{Name: "wait", Usage: "wait until every role is ready"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "how long --wait waits"},
		},
		Action: func(c *cli.Context) error {
			cl, err := connect(c)
			if err != nil {
				return err
			}
			st, err := cl.Status(c.Context)
			deadline := time.Now().Add(c.Duration("timeout"))
			for c.Bool("wait") && (err != nil || !ready(st)) {
				if time.Now().After(deadline) {
					if err == nil {
						err = fmt.Errorf("not ready after %v: %s", c.Duration("timeout"), unready(st))
					}
					return err
				}
				select {
				case <-c.Context.Done():
					return c.Context.Err()
				case <-time.After(50 * time.Millisecond):
				}
				st, err = cl.Status(c.Context)
			}
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, st)
			}
			var rows [][]string
			for _, s := range st {
				state := "ready"
				if !s.Ready {
					state = "not ready"
				}
				rows = append(rows, []string{s.Role, s.Machine, state, fmt.Sprint(s.PID), fmt.Sprint(s.Restarts), drops(s.Drops)})
			}
			if err := table(c.App.Writer, "ROLE\tMACHINE\tSTATE\tPID\tRESTARTS\tREFUSED", rows); err != nil {
				return err
			}
			for _, s := range st {
				for _, w := range s.Warnings {
					fmt.Fprintln(c.App.ErrWriter, "warning:", w)
				}
			}
			return nil
		},
	}
}

func ready(st []api.Status) bool { return len(st) > 0 && unready(st) == "" }

func unready(st []api.Status) string {
	var names []string
	for _, s := range st {
		if !s.Ready {
			names = append(names, s.Role)
		}
	}
	return strings.Join(names, ", ")
}

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:  "reload",
		Usage: "make a running `spillway up` read its configuration again",
		Description: "A configuration with an error changes nothing, and the error is told here.\n\n" +
			"Example:\n   spillway reload",
		Flags: []cli.Flag{apiFlag()},
		Action: func(c *cli.Context) error {
			cl, err := connect(c)
			if err != nil {
				return err
			}
			return cl.Reload(c.Context)
		},
	}
}
