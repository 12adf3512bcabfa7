// Command bench measures spillway beside other ways to the same server and
// prints a Markdown table. `make bench` runs it; see package bench.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) int {
	if len(args) > 0 && args[0] == bench.LoadVerb {
		return bench.LoadMain(ctx, args[1:])
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	var (
		cfg       = bench.Config{Log: os.Stderr}
		out       = fs.String("out", "", "also write the data as JSON to `FILE`")
		modes     = fs.String("modes", "", "only these `MODES`, separated by commas: kernel, wireguard-go, nebula, nebula-chacha, spillway")
		scenarios = fs.String("scenarios", os.Getenv("SCENARIOS"), "only these `SCENARIOS`: "+strings.Join(bench.Scenarios(), ", "))
		within    = fs.Duration("within", 2*time.Hour, "end after this time with what there is")
	)
	fs.IntVar(&cfg.Rounds, "rounds", 3, "times that every mode is measured")
	fs.IntVar(&cfg.Secs, "secs", 3, "seconds of each measurement")
	fs.StringVar(&cfg.Nebula, "nebula", os.Getenv("NEBULA"), "`PATH` of a nebula binary, nebula-cert beside it")
	fs.StringVar(&cfg.Spillway, "spillway", "bin/spillway", "`PATH` of the spillway binary; empty to leave it out")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unexpected %q\n", fs.Arg(0))
		return 2
	}
	cfg.Modes, cfg.Scenarios = words(*modes), words(*scenarios)
	if err := measure(ctx, cfg, *within, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func measure(ctx context.Context, cfg bench.Config, within time.Duration, out string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("bench: needs root: it makes network namespaces")
	}
	if cfg.Self, err = os.Executable(); err != nil {
		return err
	}
	for _, p := range []*string{&cfg.Nebula, &cfg.Spillway} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	rep, err := bench.Run(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Print(rep.Markdown(bench.Metrics()))
	if out != "" {
		b, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if len(rep.Failed) > 0 {
		return fmt.Errorf("bench: %d of %d modes failed", len(rep.Failed), len(rep.Modes))
	}
	return nil
}
