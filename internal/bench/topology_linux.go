package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/internal/hostnet"
)

// Fixed addresses of the three namespaces.
var (
	taskAddr    = netip.MustParseAddr("192.168.77.2") // on the underlay
	egressAddr  = netip.MustParseAddr("192.168.77.1")
	subnetCIDR  = netip.MustParsePrefix("10.0.1.0/24")
	egressOnNet = netip.MustParseAddr("10.0.1.4")
	serverAddr  = netip.MustParseAddr("10.0.1.10")
	sharedAddr  = "10.0.1.50" // of spillway's endpoint
)

// Names of interfaces.
const (
	linkUnderlay = "und0" // in task and egress
	linkSubnet   = "sub0" // in egress
	linkServer   = "eth0" // in server
)

// net3 is one set of namespaces: task - egress - server.
type net3 struct {
	task, egress, server *space
	mtu                  int
	spaces               []*space
}

// space is a namespace and a connection to its kernel side.
type space struct {
	ns   *hostnet.NS
	conn *hostnet.Conn
}

func (s *space) close() error { return errors.Join(s.conn.Close(), s.ns.Close()) }

func newSpace() (*space, error) {
	ns, err := hostnet.NewNS()
	if err != nil {
		return nil, err
	}
	conn, err := ns.Open()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	s := &space{ns, conn}
	err = ns.SetSysctls([][2]string{
		{"net/ipv4/ip_local_port_range", "1025 65535"},
		{"net/ipv4/tcp_tw_reuse", "1"},
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// newNet3 builds the namespaces. The kernel ends them when they are closed
// and nobody runs inside any more.
func newNet3(mtu int, offloads bool) (n *net3, err error) {
	n = &net3{mtu: mtu}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("namespaces: %w", err), n.close())
		}
	}()
	for _, to := range []**space{&n.task, &n.egress, &n.server} {
		if *to, err = newSpace(); err != nil {
			return n, err
		}
		n.spaces = append(n.spaces, *to)
	}
	for _, v := range []struct {
		a, b         *space
		aName, bName string
		aAddr, bAddr netip.Addr
	}{
		{n.task, n.egress, linkUnderlay, linkUnderlay, taskAddr, egressAddr},
		{n.egress, n.server, linkSubnet, linkServer, egressOnNet, serverAddr},
	} {
		if err = v.a.conn.AddVeth(v.aName, v.bName, v.b.ns, mtu); err != nil {
			return n, err
		}
		for _, e := range []struct {
			s    *space
			name string
			addr netip.Addr
		}{{v.a, v.aName, v.aAddr}, {v.b, v.bName, v.bAddr}} {
			if !offloads {
				if err = e.s.conn.SetOffloads(e.name, hostnet.Offloads{}); err != nil {
					return n, err
				}
			}
			if err = errors.Join(e.s.conn.AddAddr(e.name, netip.PrefixFrom(e.addr, 24)), e.s.conn.SetUp(e.name)); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (n *net3) close() error {
	var errs []error
	for _, s := range n.spaces {
		errs = append(errs, s.close())
	}
	n.spaces = nil
	return errors.Join(errs...)
}

// masquerade makes the egress forward what comes in by link, behind its own
// address on the subnet, and nothing back but answers: what a careful person
// writes by hand, and the same work that spillway does itself.
func (n *net3) masquerade(ctx context.Context, link string) error {
	if err := n.egress.ns.SetSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	rules := fmt.Sprintf(`table ip bench {
	chain nat { type nat hook postrouting priority 100; policy accept; oifname %q masquerade; }
	chain out { type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname %q oifname %q ct state new accept
	}
}
`, linkSubnet, link, linkSubnet)
	p, err := start(n.egress.ns, command{path: "nft", args: []string{"-f", "-"}, stdin: rules})
	if err != nil {
		return err
	}
	_, err = p.wait(ctx)
	return err
}
