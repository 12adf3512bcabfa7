package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/fe919326/spillway/internal/hostnet"
)

// nebulaMode is a nebula binary at both ends with large socket buffers (its
// default ones drop), and nft masquerade.
type nebulaMode struct {
	name, binary, cipher string
	dir                  string
}

const (
	nebulaLink = "nebula1"
	nebulaPort = 4242
	// nebulaCost: IPv4 20, UDP 8, nebula header 16, tag 16.
	nebulaCost = 60
)

func (m *nebulaMode) Name() string { return m.name }

// Prepare makes a certificate authority and a certificate for each end.
func (m *nebulaMode) Prepare(ctx context.Context, dir string) error {
	m.dir = filepath.Join(dir, m.name)
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return err
	}
	cert := func(args ...string) error {
		c := exec.CommandContext(ctx, filepath.Join(filepath.Dir(m.binary), "nebula-cert"), args...)
		c.Dir = m.dir
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, tail(string(out)))
		}
		return nil
	}
	return errors.Join(
		cert("ca", "-name", "bench"),
		cert("sign", "-name", "task", "-ip", netip.PrefixFrom(innerTask, 24).String()),
		cert("sign", "-name", "egress", "-ip", netip.PrefixFrom(innerEgress, 24).String(), "-subnets", subnetCIDR.String()))
}

func (m *nebulaMode) config(end string, mtu int, peer, peerInner netip.Addr) string {
	routes := ""
	if end == "task" {
		routes = fmt.Sprintf("\n  unsafe_routes: [ { route: %s, via: %s, mtu: %d } ]", subnetCIDR, innerEgress, mtu)
	}
	return fmt.Sprintf(`pki: { ca: %[1]s/ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key }
static_host_map: { "%[3]s": ["%[4]s:%[5]d"] }
lighthouse: { am_lighthouse: false, interval: 60, hosts: [] }
listen: { host: 0.0.0.0, port: %[5]d, read_buffer: 10485760, write_buffer: 10485760 }
cipher: %[6]s
punchy: { punch: false }
tun:
  dev: %[7]s
  mtu: %[8]d
  tx_queue: 1000%[9]s
logging: { level: warning }
firewall:
  default_local_cidr_any: true
  outbound: [ { port: any, proto: any, host: any } ]
  inbound: [ { port: any, proto: any, host: any } ]
`, m.dir, end, peerInner, peer, nebulaPort, m.cipher, nebulaLink, mtu, routes)
}

func (m *nebulaMode) Up(ctx context.Context, n *net3) (*path, error) {
	p := &path{apps: []*hostnet.NS{n.task.ns}, server: serverAddr}
	dir, err := p.makeDir(m.dir)
	if err != nil {
		return p.failed(m.name, err)
	}
	for _, e := range []struct {
		s               *space
		end             string
		peer, peerInner netip.Addr
	}{{n.egress, "egress", taskAddr, innerTask}, {n.task, "task", egressAddr, innerEgress}} {
		file := filepath.Join(dir, e.end+".yml")
		if err := os.WriteFile(file, []byte(m.config(e.end, n.mtu-nebulaCost, e.peer, e.peerInner)), 0o600); err != nil {
			return p.failed(m.name, err)
		}
		x, err := p.run(e.s.ns, command{path: m.binary, args: []string{"-config", file}})
		if err != nil {
			return p.failed(m.name, err)
		}
		p.tunnels = append(p.tunnels, x.pid())
		err = waitFor(ctx, "nebula's link", func() error {
			if err := x.alive(); err != nil {
				return err
			}
			_, err := e.s.conn.Link(nebulaLink)
			return err
		})
		if err != nil {
			return p.failed(m.name, err)
		}
	}
	if err := n.masquerade(ctx, nebulaLink); err != nil {
		return p.failed(m.name, err)
	}
	return p, nil
}
