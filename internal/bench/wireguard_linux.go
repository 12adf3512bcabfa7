package bench

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
)

// wireguardMode is wireguard-go at both ends, built from the module that
// spillway itself uses, and configured over its own socket.
type wireguardMode struct {
	binary string
	dir    string
}

const (
	wireguardModule = "golang.zx2c4.com/wireguard"
	wireguardPort   = 51820
	// wireguardCost is what a tunnel takes of the underlay's MTU over IPv4,
	// rounded up as wg-quick does it (80 for IPv6 too).
	wireguardCost = 80
)

var (
	innerTask   = netip.MustParseAddr("10.200.0.2")
	innerEgress = netip.MustParseAddr("10.200.0.1")
)

func (*wireguardMode) Name() string { return ModeWireGuard }

// Prepare builds the program.
func (m *wireguardMode) Prepare(ctx context.Context, dir string) error {
	m.dir, m.binary = dir, filepath.Join(dir, "wireguard-go")
	c := exec.CommandContext(ctx, "go", "build", "-o", m.binary, wireguardModule)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s (run the bench in the module's tree): %w: %s", wireguardModule, err, tail(string(out)))
	}
	return nil
}

// Up starts both ends. The links are called after this process, because the
// configuration sockets of all namespaces share one directory.
func (m *wireguardMode) Up(ctx context.Context, n *net3) (*path, error) {
	p := &path{apps: []*hostnet.NS{n.task.ns}, server: serverAddr}
	taskKey, err1 := ecdh.X25519().GenerateKey(rand.Reader)
	egressKey, err2 := ecdh.X25519().GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return p.failed(ModeWireGuard, err)
	}
	for _, e := range []struct {
		s        *space
		name     string
		own      *ecdh.PrivateKey
		peer     *ecdh.PublicKey
		peerAddr netip.Addr
		inner    netip.Addr
		allowed  netip.Prefix
	}{
		{n.egress, "e", egressKey, taskKey.PublicKey(), taskAddr, innerEgress, netip.PrefixFrom(innerTask, 32)},
		{n.task, "t", taskKey, egressKey.PublicKey(), egressAddr, innerTask, netip.MustParsePrefix("0.0.0.0/0")},
	} {
		link := fmt.Sprintf("wgb%s%d", e.name, os.Getpid())
		x, err := p.run(e.s.ns, command{path: m.binary, args: []string{"-f", link}})
		if err != nil {
			return p.failed(ModeWireGuard, err)
		}
		p.tunnels = append(p.tunnels, x.pid())
		set := fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nreplace_allowed_ips=true\nallowed_ip=%s\n",
			hex.EncodeToString(e.own.Bytes()), wireguardPort, hex.EncodeToString(e.peer.Bytes()),
			netip.AddrPortFrom(e.peerAddr, wireguardPort), e.allowed)
		err = waitFor(ctx, "configure "+link, func() error {
			if err := x.alive(); err != nil {
				return err
			}
			return uapiSet(filepath.Join("/var/run/wireguard", link+".sock"), set)
		})
		if err == nil {
			err = e.s.tunnelLink(link, netip.PrefixFrom(e.inner, 24), n.mtu-wireguardCost)
		}
		if err != nil {
			return p.failed(ModeWireGuard, err)
		}
		if e.s == n.task {
			err = e.s.conn.SetRoute(hostnet.Route{Dst: subnetCIDR, Dev: link})
		} else {
			err = n.masquerade(ctx, link)
		}
		if err != nil {
			return p.failed(ModeWireGuard, err)
		}
	}
	return p, nil
}

// tunnelLink gives a tunnel's link its address and MTU and brings it up.
func (s *space) tunnelLink(link string, addr netip.Prefix, mtu int) error {
	return errors.Join(s.conn.SetMTU(link, mtu), s.conn.AddAddr(link, addr), s.conn.SetUp(link))
}

// uapiSet sends one set operation over WireGuard's configuration socket
// (https://www.wireguard.com/xplatform/).
func uapiSet(socket, text string) error {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "set=1\n"+text+"\n"); err != nil {
		return err
	}
	var answer [256]byte
	n, err := c.Read(answer[:])
	if err != nil {
		return err
	}
	if s := strings.TrimSpace(string(answer[:n])); s != "errno=0" {
		return fmt.Errorf("wireguard-go answers %q", s)
	}
	return nil
}
