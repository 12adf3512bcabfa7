package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:  "attach",
		Usage: "give a network namespace its secondary interface",
		Description: "Gives the namespace an interface spill0 and the rules that send everything the task\n" +
			"starts through it. Rules come first and stay after a crash: nothing the task starts\n" +
			"leaves by the primary interface, before, during or after.\n\n" +
			"Example:\n" +
			"   spillway attach --netns /var/run/netns/web1 --service web --name web1\n" +
			"   spillway attach --pid 4711 --service web --primary-allow 192.0.2.10/32:443",
		Flags: []cli.Flag{
			apiFlag(), jsonFlag(),
			&cli.StringFlag{Name: "netns", Usage: "`PATH` of the namespace"},
			&cli.IntFlag{Name: "pid", Usage: "a process `N` in the namespace"},
			&cli.StringFlag{Name: "service", Usage: "`NAME` of the service the task belongs to; required"},
			&cli.StringFlag{Name: "account", Usage: "`ACCOUNT` of the service", Value: "default"},
			&cli.StringFlag{Name: "name", Usage: "`ID` of the task (default: chosen by the host)"},
			&cli.StringSliceFlag{Name: "primary-allow", Usage: "`CIDR[:PORT]` the task may reach by its primary interface"},
			&cli.IntSliceFlag{Name: "primary-udp", Usage: "UDP `PORT` the task serves on its primary interface"},
		},
		Action: func(c *cli.Context) error {
			if err := errors.Join(noArgs(c), required(c, "service")); err != nil {
				return err
			}
			r := api.AttachRequest{
				Netns: c.String("netns"), PID: c.Int("pid"), Account: c.String("account"),
				Service: c.String("service"), ID: c.String("name"), PrimaryAllow: c.StringSlice("primary-allow"),
			}
			if (r.Netns == "") == (r.PID == 0) {
				return usagef("attach needs either --netns PATH or --pid N")
			}
			if r.Netns != "" {
				abs, err := filepath.Abs(r.Netns)
				if err != nil {
					return err
				}
				r.Netns = abs
			}
			for _, p := range c.IntSlice("primary-udp") {
				if p < 1 || p > 65535 {
					return usagef("--primary-udp %d: want a port from 1 to 65535", p)
				}
				r.PrimaryUDPPorts = append(r.PrimaryUDPPorts, uint16(p))
			}
			cl, err := client(c)
			if err != nil {
				return err
			}
			t, err := cl.Attach(c.Context, r)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, t)
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s: %s leaves by %s as %s (%s)\n", t.ID, t.Interface,
				t.Endpoint, addrs(t.Outside), time.Duration(t.Steps["total"])*time.Microsecond)
			return err
		},
	}
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name:      "detach",
		Usage:     "take a task's secondary interface away",
		ArgsUsage: "ID",
		Description: "Removes the task's interface, rules and guards; what its flows still held at the endpoint idles out.\n\n" +
			"Example:\n   spillway detach web1",
		Flags: []cli.Flag{apiFlag()},
		Action: func(c *cli.Context) error {
			id, err := oneArg(c, "task id")
			if err != nil {
				return err
			}
			cl, err := client(c)
			if err != nil {
				return err
			}
			return cl.Detach(c.Context, id)
		},
	}
}

func taskCommand() *cli.Command {
	return &cli.Command{
		Name: "task", Usage: "look at tasks",
		Subcommands: []*cli.Command{{
			Name: "list", Usage: "list the tasks of this host",
			Description: "Example:\n   spillway task list --json",
			Flags:       []cli.Flag{apiFlag(), jsonFlag()},
			Action: func(c *cli.Context) error {
				cl, err := connect(c)
				if err != nil {
					return err
				}
				tasks, err := cl.Tasks(c.Context)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, tasks)
				}
				var rows [][]string
				for _, t := range tasks {
					rows = append(rows, []string{t.ID, t.Account + "/" + t.Service, t.Endpoint, addrs(t.Inner), addrs(t.Outside),
						strconv.FormatUint(t.Bytes.Out, 10), strconv.FormatUint(t.Bytes.In, 10), drops(t.Drops)})
				}
				return table(c.App.Writer, "ID\tSERVICE\tENDPOINT\tINNER\tOUTSIDE\tBYTES OUT\tBYTES IN\tREFUSED", rows)
			},
		}},
	}
}

// addrs prints a list of addresses in one cell.
func addrs[T fmt.Stringer](list []T) string {
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return orDash(strings.Join(s, ","))
}

// drops prints counters by reason in one cell, the largest first.
func drops(m map[string]uint64) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	slices.SortStableFunc(keys, func(a, b string) int {
		switch {
		case m[a] > m[b]:
			return -1
		case m[a] < m[b]:
			return 1
		}
		return 0
	})
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s=%d", k, m[k])
	}
	return orDash(strings.Join(keys, " "))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
