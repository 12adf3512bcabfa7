package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
	"github.com/fe919326/spillway/internal/lab/netlab"
	"github.com/fe919326/spillway/internal/lab/servers"
	"github.com/fe919326/spillway/internal/lab/spill"
)

// Config is what Run needs.
type Config struct {
	Exe string    // the spillway binary
	Out io.Writer // takes the narration; nil means none
	// Keep leaves the machines' logs in Dir when a check failed.
	Dir string // default: a directory in /dev/shm, else in TMPDIR
}

// tasks is how many tasks the demo attaches.
const tasks = 3

// deniedPort is a port that no rule of the demo's security group allows.
const deniedPort = 9999

// stage is the demo's world.
type stage struct {
	*narrator
	lab     *netlab.Lab
	servers *servers.Set
	egress  *spill.Node
	host    *spill.Node
	ids     []string
	outside netip.Addr // the endpoint's IPv4 address
	ctx     context.Context
}

// Run shows the main job and returns what held. The error is for what kept it
// from being shown at all.
func Run(ctx context.Context, cfg Config) (Report, error) {
	n := &narrator{out: cfg.Out, begun: time.Now()}
	dir := cfg.Dir
	if dir == "" {
		parent := "/dev/shm"
		if st, err := os.Stat(parent); err != nil || !st.IsDir() {
			parent = os.TempDir()
		}
		var err error
		if dir, err = os.MkdirTemp(parent, "spillway-demo-"); err != nil {
			return Report{}, err
		}
		defer os.RemoveAll(dir)
	}
	s := &stage{narrator: n, ctx: ctx}
	err := s.build(cfg.Exe, dir)
	if err == nil {
		err = s.play()
	}
	s.tearDown()
	r := n.report()
	if err != nil {
		r.OK = false
	}
	return r, err
}

// build makes the networks, the servers, and both machines' configurations.
func (s *stage) build(exe, dir string) error {
	s.say("A provider's network with a host and %d tasks, and a private subnet with real servers, out of network namespaces:", tasks)
	var err error
	if s.lab, err = netlab.New(netlab.Config{Tasks: tasks, Servers: 1, V6: true, RunDir: dir}); err != nil {
		return fmt.Errorf("build the networks: %w", err)
	}
	srv := s.lab.Servers[0]
	names := map[string][]netip.Addr{"db.internal.": {srv.Addr4, srv.Addr6}}
	if s.servers, err = servers.Start(srv.Do, names); err != nil {
		return fmt.Errorf("start the servers: %w", err)
	}
	if s.egress, err = spill.NewNode(exe, dir, "egress-1", s.lab.Egress[0]); err != nil {
		return err
	}
	if s.host, err = spill.NewNode(exe, dir, "host-1", s.lab.Host); err != nil {
		return err
	}
	pair := spill.Pair{Egress: s.egress, Host: s.host, Lab: s.lab, Extra: "limits: { max_flows: 65536 }\n"}
	if err := pair.Configure(); err != nil {
		return err
	}
	s.check("networks", nil, "subnet %v and %v with HTTP, TCP, UDP and DNS servers at %v", netlab.SubnetCIDR4, netlab.SubnetCIDR6, srv.Addr4)
	return nil
}

// play shows one thing after the other.
func (s *stage) play() error {
	ctx := s.ctx
	s.say("The egress machine starts. The endpoint gets its address now, before there is any task:")
	if err := s.egress.Start(ctx); err != nil {
		return err
	}
	if err := s.endpoint(); err != nil {
		return err
	}
	s.say("The host starts and the tasks are attached. Each gets an interface spill0 beside its eth0:")
	if err := s.host.Start(ctx); err != nil {
		return err
	}
	if err := s.attach(); err != nil {
		return err
	}
	s.say("Every task talks to the private servers. They see one address:")
	s.reach()
	s.say("A request comes in by a task's primary interface, while the task downloads by the other:")
	s.inboundMeanwhile()
	s.say("The way is one-way. Somebody on the subnet knocks at the endpoint's address:")
	s.unsolicited()
	s.say("Security groups decide, and say so at once:")
	s.denied()
	s.taskToTask()
	s.say("The way is wide:")
	s.throughput()
	s.say("The host's engine is killed. Its tasks fail closed:")
	s.killed()
	return nil
}

// tearDown removes everything and checks that nothing is left.
func (s *stage) tearDown() {
	if s.lab == nil {
		return
	}
	s.say("Everything is taken down again:")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 20*time.Second)
	defer cancel()
	var errs []error
	var pids []int
	stop := func(n *spill.Node) {
		ids, err := n.PIDs(ctx)
		pids = append(pids, ids...)
		errs = append(errs, err, n.Stop())
	}
	if s.host != nil && s.host.Started() {
		for _, id := range s.ids {
			if _, err := s.host.Run(ctx, "detach", id); err != nil {
				errs = append(errs, err)
			}
		}
		stop(s.host)
	}
	if s.egress != nil && s.egress.Started() {
		stop(s.egress)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("process %d is left", pid))
		}
	}
	for _, b := range append([]*netlab.Box{s.lab.Host, s.lab.Egress[0]}, s.lab.Tasks...) {
		errs = append(errs, left(b))
	}
	if s.servers != nil {
		s.servers.Close()
	}
	errs = append(errs, s.lab.Close())
	s.check("clean tear-down", errors.Join(errs...), "no interface, rule, route, guard or process is left")
}

// left fails if cleaning a box up finds anything of spillway's in it.
func left(b *netlab.Box) error {
	found, err := hostnet.Cleanup(b.NS)
	if len(found) > 0 {
		err = errors.Join(err, fmt.Errorf("left in %s: %s", b.Name, strings.Join(found, ", ")))
	}
	return err
}
