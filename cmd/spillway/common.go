package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
)

// defaultAPI is where `spillway up` listens unless its configuration says
// otherwise.
const defaultAPI = "unix:///run/spillway/api.sock"

func apiFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "api", Value: defaultAPI, EnvVars: []string{"SPILLWAY_API"},
		Usage: "`ADDR` of the spillway to speak to: unix:///path or http://host:port",
	}
}

func jsonFlag() cli.Flag {
	return &cli.BoolFlag{Name: "json", Usage: "print JSON"}
}

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "configuration `FILE` (docs/config.md); required"}
}

// required refuses a call without the flag. The library's own way prints the
// help on standard output, which is for answers.
func required(c *cli.Context, flag string) error {
	if c.String(flag) == "" {
		return usagef("%s needs --%s; `spillway %s --help` shows an example", c.Command.Name, flag, c.Command.Name)
	}
	return nil
}

func client(c *cli.Context) (*api.Client, error) {
	cl, err := api.NewClient(c.String("api"))
	if err != nil {
		return nil, errUsage{err}
	}
	return cl, nil
}

// connect returns the client of a verb that takes no arguments.
func connect(c *cli.Context) (*api.Client, error) {
	if err := noArgs(c); err != nil {
		return nil, err
	}
	return client(c)
}

// noArgs refuses arguments where none are expected.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		return usagef("%s takes no arguments, got %q", c.Command.Name, c.Args().First())
	}
	return nil
}

// oneArg returns the only argument, what it is being named for the error.
func oneArg(c *cli.Context, what string) (string, error) {
	for _, a := range c.Args().Slice() {
		if strings.HasPrefix(a, "-") {
			return "", usagef("%s: flags come before the %s: %q is too late", c.Command.Name, what, a)
		}
	}
	if c.NArg() != 1 {
		return "", usagef("%s needs exactly one %s", c.Command.Name, what)
	}
	return c.Args().First(), nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints rows in columns.
func table(w io.Writer, header string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"},
		&cli.BoolFlag{Name: "log-json", Usage: "log JSON lines"},
	}
}

// logger logs to standard error: standard output is for answers.
func logger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, usagef("--log-level %q: want debug, info, warn or error", c.String("log-level"))
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Bool("log-json") {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
