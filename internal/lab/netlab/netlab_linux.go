package netlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/fe919326/spillway/internal/hostnet"
)

// Profile is the kind of network around spillway.
type Profile string

const (
	// L2 is a plain Ethernet: neighbours believe ARP and neighbour
	// discovery, the underlay has no firewall.
	L2 Profile = "l2"
	// Cloud is like a cloud provider's: the underlay lets only flows pass
	// that the host starts, and the subnet takes an address from an egress
	// only after it was bound to it (Lab.Bind, or the program ClaimProgram).
	Cloud Profile = "cloud"
)

// Config says what a lab looks like.
type Config struct {
	Tasks    int     // 0-200; default 1
	Servers  int     // 0-200; default 1
	Egresses int     // 1-20; default 1
	Profile  Profile // "" means L2
	V6       bool    // IPv6 everywhere too
	RunDir   string  // where the lab's directory is made; "" means os.TempDir()
	MTU      int     // of the underlay, bytes; 0 means 1500

	// SubnetMTU is the subnet's MTU in bytes; 0 means 1500.
	SubnetMTU int
	// NoOffloads switches checksum, segmentation and receive offloads of
	// every veth off, so that a capture sees wire packets.
	NoOffloads bool
	// Congestion is the TCP congestion control of every box; "" leaves the
	// machine's. It must be built into the kernel.
	Congestion string
}

// Lab is a network that was built. Close removes it.
type Lab struct {
	Config Config
	Dir    string // the lab's directory; holds one namespace file per box

	Prov    *Box // the provider's network: clients of the tasks
	Host    *Box // runs spillway's host role
	Und     *Box // the underlay's switch or firewall; nil in L2 with one egress
	Subnet  *Box // the subnet's bridge (br0), which is also its router
	Egress  []*Box
	Tasks   []*Box
	Servers []*Box

	boxes []*Box
	undo  []func() error
}

// Box is one machine of the lab: a namespace.
type Box struct {
	Name string
	NS   *hostnet.NS
	Conn *hostnet.Conn // not safe for concurrent use
	// Addr4 and Addr6 are the address that others know the box by; the
	// egress's is the one on the underlay.
	Addr4, Addr6 netip.Addr
}

// Do runs fn inside the box; see hostnet.NS.Do.
func (b *Box) Do(fn func() error) error { return b.NS.Do(fn) }

// Listen opens a TCP listener in the box.
func (b *Box) Listen(network, addr string) (l net.Listener, err error) {
	err = b.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// ListenPacket opens a UDP socket in the box.
func (b *Box) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = b.Do(func() error {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

// Dial connects from the box. addr must be an IP address and port: there is
// no resolver.
func (b *Box) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	err = b.Do(func() error {
		var d net.Dialer
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// New builds a lab. What was built before an error is removed again.
func New(cfg Config) (l *Lab, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l = &Lab{Config: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()
	if l.Dir, err = os.MkdirTemp(cfg.RunDir, fmt.Sprintf("spillway-lab-%d-", os.Getpid())); err != nil {
		return l, fmt.Errorf("netlab: %w", err)
	}
	l.undo = append(l.undo, func() error { return os.RemoveAll(l.Dir) })
	for _, step := range []func() error{l.makeBoxes, l.primary, l.underlay, l.subnet, l.cloud, l.settle, l.writeState} {
		if err = step(); err != nil {
			return l, fmt.Errorf("netlab: %w", err)
		}
	}
	return l, nil
}

func (c *Config) check() error {
	def := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	def(&c.Egresses, 1)
	def(&c.Tasks, 1)
	def(&c.Servers, 1)
	def(&c.MTU, 1500)
	def(&c.SubnetMTU, 1500)
	if c.Profile == "" {
		c.Profile = L2
	}
	switch {
	case c.Tasks < 0 || c.Tasks > 200, c.Servers < 0 || c.Servers > 200, c.Egresses < 0 || c.Egresses > 20:
		return errors.New("netlab: more boxes than addresses")
	case c.Profile != L2 && c.Profile != Cloud:
		return fmt.Errorf("netlab: profile %q: want l2 or cloud", c.Profile)
	}
	return nil
}

// Close removes the lab: namespaces, their interfaces, the directory. It may
// be called again.
func (l *Lab) Close() error {
	var errs []error
	for i := len(l.undo) - 1; i >= 0; i-- {
		errs = append(errs, l.undo[i]())
	}
	l.undo = nil
	return errors.Join(errs...)
}

func (l *Lab) makeBoxes() error {
	var err error
	box := func(name string) *Box {
		if err != nil {
			return nil
		}
		var b *Box
		b, err = l.box(name)
		return b
	}
	l.Prov, l.Host = box("prov"), box("host")
	if l.Config.Profile == Cloud || l.Config.Egresses > 1 {
		l.Und = box("und")
	}
	l.Subnet = box("subnet")
	for i := range l.Config.Egresses {
		l.Egress = append(l.Egress, box(numbered("egress", i)))
	}
	for i := range l.Config.Tasks {
		l.Tasks = append(l.Tasks, box(numbered("task", i)))
	}
	for i := range l.Config.Servers {
		l.Servers = append(l.Servers, box(numbered("srv", i)))
	}
	return err
}

func numbered(kind string, i int) string { return fmt.Sprintf("%s%d", kind, i+1) }

func (l *Lab) box(name string) (*Box, error) {
	path := filepath.Join(l.Dir, name)
	ns, err := hostnet.CreateNS(path)
	if err != nil {
		return nil, err
	}
	b := &Box{Name: name, NS: ns}
	l.undo = append(l.undo, func() error {
		var errs []error
		if b.Conn != nil {
			errs = append(errs, b.Conn.Close())
		}
		return errors.Join(append(errs, ns.Close(), hostnet.DeleteNS(path))...)
	})
	if b.Conn, err = ns.Open(); err != nil {
		return nil, err
	}
	kv := [][2]string{{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"}}
	// Link-local addresses work at once: nobody waits for duplicate address
	// detection on a network that was made a moment ago.
	kv = append(kv, [2]string{"net/ipv6/conf/default/accept_dad", "0"}, [2]string{"net/ipv6/conf/default/dad_transmits", "0"})
	if !l.Config.V6 {
		kv = append(kv, [2]string{"net/ipv6/conf/default/disable_ipv6", "1"})
	}
	if l.Config.Congestion != "" {
		kv = append(kv, [2]string{"net/ipv4/tcp_congestion_control", l.Config.Congestion})
	}
	if err := ns.SetSysctls(kv); err != nil {
		return nil, err
	}
	l.boxes = append(l.boxes, b)
	return b, nil
}

// settle waits until every link carries packets: the kernel takes up to a
// second for that, and IPv6 does not ask for neighbours before.
func (l *Lab) settle() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, b := range l.boxes {
		links, err := b.Conn.Links()
		if err != nil {
			return err
		}
		for _, k := range links {
			if !k.Up || k.Ready {
				continue
			}
			if err := b.Conn.WaitReady(ctx, k.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// state is what ClaimProgram's process needs to know about the lab.
type state struct {
	Servers int
	// MACs are the egresses' addresses in the subnet. They stay with the
	// interface when an engine moves it into a namespace of its own.
	MACs []net.HardwareAddr
}

func (l *Lab) writeState() error {
	st := state{Servers: l.Config.Servers}
	for _, e := range l.Egress {
		link, err := e.Conn.Link(EgressLink)
		if err != nil {
			return err
		}
		st.MACs = append(st.MACs, link.MAC)
	}
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, stateFile), b, 0o644)
}

const stateFile = "lab.json"
