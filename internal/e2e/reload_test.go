//go:build netns && linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/lab/servers"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// TestReload_ErrorsChangeNothingAndRulesApplyLive: a configuration with an
// error is refused with file, line and way out, and everything goes on; a good
// one with another rule holds for new flows at once and leaves tracked flows
// alone (Q9).
func TestReload_ErrorsChangeNothingAndRulesApplyLive(t *testing.T) {
	w := begin(t, scene{Attach: true})
	task, web := w.Tasks[0], at(w.server.Addr4, servers.HTTPPort)
	check(t, w.reach(task))
	live := must(w.dial(task, "tcp", at(w.server.Addr4, servers.EchoPort), 2*time.Minute))(t)
	defer live.Close()
	check(t, say(live, "before"))
	was := w.endpoints()[0].Endpoint

	good := must(os.ReadFile(w.egress.Config()))(t)
	bad := strings.Replace(string(good), "cidrs: [10.0.0.0/8,", "cidr: [10.0.0.0/8,", 1)
	check(t, os.WriteFile(w.egress.Config(), []byte(bad), 0o600))
	_, err := w.egress.Run(w.ctx, "reload")
	line := 1 + strings.Count(bad[:strings.Index(bad, "cidr: [")], "\n")
	wantError(t, err, "spillway.yaml:"+itoa(line)+":", `unknown key "cidr"`, `did you mean "cidrs"`)
	check(t, w.reach(task))
	check(t, say(live, "after the error"))

	// Port 80 and the echo port lose their rules, port 9 gets one.
	w.pair.Policy = strings.Replace(spill.DefaultPolicy, "[7, 53, 80, 5001]", "[9, 53, 5001]", 1)
	check(t, w.pair.Configure())
	_, err = w.egress.Run(w.ctx, "reload")
	check(t, err)
	if err := w.refused(task, web); err != nil {
		t.Errorf("port 80 without its rule: %v", err)
	}
	if err := w.refused(task, at(w.server.Addr4, servers.EchoPort)); err != nil {
		t.Errorf("port 7 without its rule: %v", err)
	}
	l := must(w.server.Listen("tcp", at(w.server.Addr4, 9)))(t)
	defer l.Close()
	c := must(w.dial(task, "tcp", at(w.server.Addr4, 9), 5*time.Second))(t)
	c.Close()
	check(t, say(live, "a tracked flow goes on"))
	now := w.endpoints()[0].Endpoint
	if now.ID != was.ID || !slices.Equal(now.Addresses[0].Prefixes, was.Addresses[0].Prefixes) || now.Addresses[0].V4 != was.Addresses[0].V4 {
		t.Errorf("the endpoint changed with its rules: %+v, was %+v", now, was)
	}
}

// TestUp_SaysWhatItLacks: without privileges, and with a broken file, one
// clear sentence and exit code 1.
func TestUp_SaysWhatItLacks(t *testing.T) {
	home := must(os.MkdirTemp(dir, "u"))(t)
	check(t, os.Chmod(home, 0o755))
	check(t, os.Chmod(dir, 0o755))
	state := filepath.Join(home, "own")
	check(t, os.Mkdir(state, 0o700))
	text := "machine: egress-1\nroles: [egress]\nstate_dir: " + state + "/s\nrun_dir: " + state + `/r
subnets: [ { name: subnet-a, cidrs: [10.0.1.0/24], interface: lo, addresses: [10.0.1.50] } ]
security_groups: [ { name: g, egress: [] } ]
connectors: [ { name: c, subnets: [subnet-a], security_groups: [g] } ]
services: [ { name: web, connector: c } ]
`
	path := filepath.Join(home, "spillway.yaml")
	check(t, os.WriteFile(path, []byte(text), 0o644))
	// A user namespace of its own, in which it is not root: no capabilities are
	// left after exec, whoever runs the test.
	nobody := func(host int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 65534, HostID: host, Size: 1}}
	}
	unprivileged := func(args ...string) (string, int) {
		cmd := exec.Command(binary, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: nobody(os.Getuid()), GidMappings: nobody(os.Getgid()),
		}
		cmd.Dir = "/"
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		check(t, cmd.Start())
		stop := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		defer stop.Stop()
		_ = cmd.Wait() // the exit code tells
		return out.String(), cmd.ProcessState.ExitCode()
	}
	for _, verb := range []string{"up", "egress", "host"} {
		out, code := unprivileged(verb, "--config", path)
		if code != 1 || !strings.Contains(out, "CAP_NET_ADMIN") || strings.Count(strings.TrimSpace(out), "\n") > 0 {
			t.Errorf("spillway %s without privileges: exit code %d and\n%s\nwant 1 and one sentence that names CAP_NET_ADMIN", verb, code, out)
		}
	}
	check(t, os.WriteFile(path, []byte(strings.Replace(text, "services:", "servces:", 1)), 0o644))
	out, code := unprivileged("up", "--config", path)
	if code != 1 || !strings.Contains(out, path+":8:") || !strings.Contains(out, `did you mean "services"`) {
		t.Errorf("a broken file: exit code %d and\n%s", code, out)
	}
}
