package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
	"net/netip"
)

// call runs the command as a shell would and returns what it printed.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	grab := func(f **os.File) func() string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		old := *f
		*f = w
		return func() string {
			*f = old
			w.Close()
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	out, errs := grab(&os.Stdout), grab(&os.Stderr)
	code = run(context.Background(), append([]string{"spillway"}, args...))
	return code, out(), errs()
}

// TestUsageErrors: exit code 2, one sentence on standard error that names the
// thing and the way out, nothing on standard output.
func TestUsageErrors(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"atach", `no verb "atach"`},
		{"task lst", `no verb "lst" under "task"`},
		{"attach --service web", "--netns PATH or --pid N"},
		{"attach --service web --netns /a --pid 3", "--netns PATH or --pid N"},
		{"attach --netns /a", "service"},
		{"attach --service web --netns /a extra", `got "extra"`},
		{"attach --service web --netns /a --primary-udp 70000", "1 to 65535"},
		{"detach", "exactly one task id"},
		{"up", "config"},
		{"up --config x --log-level loud", "debug, info, warn or error"},
		{"flows --wrong", "-wrong"},
		{"wg-config", "--service"},
		{"wg-config --remove", "--name"},
		{"task list --api tcp://1.2.3.4", "unix:///path"},
	} {
		code, stdout, stderr := call(t, strings.Fields(c.args)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: code %d, stderr %q, want code 2 and %q", c.args, code, stderr, c.want)
		}
		if stdout != "" {
			t.Errorf("%s: a wrong call prints on standard output: %q", c.args, stdout)
		}
	}
}

// TestFailures: exit code 1 and the way out.
func TestFailures(t *testing.T) {
	none := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	for _, c := range []struct{ args, want string }{
		{"task list --api " + none, "is `spillway up` running"},
		{"detach --api " + none + " web1", "is `spillway up` running"},
		{"up --config /does/not/exist.yaml", "/does/not/exist.yaml"},
	} {
		code, stdout, stderr := call(t, strings.Fields(c.args)...)
		if code != exitFailed || !strings.Contains(stderr, c.want) || stdout != "" {
			t.Errorf("%s: code %d, stdout %q, stderr %q, want code 1 and %q", c.args, code, stdout, stderr, c.want)
		}
	}
}

// TestEveryVerbHasHelpWithAnExample.
func TestEveryVerbHasHelpWithAnExample(t *testing.T) {
	var walk func(path []string, cmds []*cli.Command)
	walk = func(path []string, cmds []*cli.Command) {
		for _, c := range cmds {
			at := append(append([]string{}, path...), c.Name)
			if len(c.Subcommands) > 0 {
				walk(at, c.Subcommands)
				continue
			}
			code, stdout, _ := call(t, append(at, "--help")...)
			if code != 0 || !strings.Contains(stdout, "Example:") || !strings.Contains(stdout, "spillway "+strings.Join(at, " ")) {
				t.Errorf("%v --help: code %d, no example of the verb in %q", at, code, stdout)
			}
		}
	}
	walk(nil, newApp().Commands)
}

// TestDoctorPrintsJSON that a script can read.
func TestDoctorPrintsJSON(t *testing.T) {
	_, stdout, _ := call(t, "doctor", "--json")
	var list []struct{ What, Level, Detail string }
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list) < 5 {
		t.Fatalf("doctor --json: %v: %q", err, stdout)
	}
	for _, f := range list {
		if f.What == "" || f.Detail == "" || (f.Level != "ok" && f.Level != "advice" && f.Level != "missing") {
			t.Errorf("finding %+v", f)
		}
	}
}

// TestWGQuickFormat is the text that wg-quick(8) reads.
func TestWGQuickFormat(t *testing.T) {
	cfg := api.ClientConfig{
		Name: "laptop", PrivateKey: "cHJpdmF0ZQ==", MTU: 1420,
		Addresses:       []netip.Prefix{netip.MustParsePrefix("100.112.4.2/32"), netip.MustParsePrefix("fd53::2/128")},
		ServerPublicKey: "cHVibGlj", ServerAddress: netip.MustParseAddrPort("192.0.2.1:51820"),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		DNS:        []netip.Addr{netip.MustParseAddr("10.0.1.2")}, Outside: []netip.Addr{netip.MustParseAddr("10.0.1.50")},
	}
	want := `# laptop: leaves as 10.0.1.50
[Interface]
PrivateKey = cHJpdmF0ZQ==
Address = 100.112.4.2/32, fd53::2/128
MTU = 1420
DNS = 10.0.1.2

[Peer]
PublicKey = cHVibGlj
Endpoint = vpn.example:51820
AllowedIPs = 0.0.0.0/0, ::/0
`
	if got := wgQuick(cfg, "vpn.example:51820", true); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
