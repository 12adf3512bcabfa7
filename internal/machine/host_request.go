package machine

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/internal/hostnet"
)

// openNamespace opens the namespace that a request names.
func openNamespace(r api.AttachRequest) (*hostnet.NS, error) {
	if r.PID != 0 {
		return hostnet.OpenPID(r.PID)
	}
	if !strings.HasPrefix(r.Netns, "/") {
		return nil, fmt.Errorf("netns %q: want an absolute path", r.Netns)
	}
	return hostnet.OpenNS(r.Netns)
}

// destinations parses what --primary-allow names.
func destinations(list []string) ([]hostnet.Destination, error) {
	var out []hostnet.Destination
	for _, s := range list {
		d, err := hostnet.ParseDestination(s)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// presets are well-known destinations that a platform's tasks reach by their
// primary: metadata services and what stands beside them.
var presets = map[string][]string{
	"ec2":        {"169.254.169.254", "169.254.170.2", "169.254.169.253", "169.254.169.123", "fd00:ec2::254", "fd00:ec2::253"},
	"gce":        {"169.254.169.254"},
	"kubernetes": {"169.254.25.10", "169.254.20.10"},
}

// excluded is what the configuration keeps on the primary.
func excluded(x config.Exclude) ([]hostnet.Destination, error) {
	var list []string
	for _, p := range x.Presets {
		list = append(list, presets[p]...)
	}
	for _, p := range x.CIDRs {
		list = append(list, p.String())
	}
	return destinations(list)
}

// taskMTU is the MTU of a task's interface: what the way to its egress carries
// inside the tunnel, and no more than the configuration says.
func (h *hostRole) taskMTU(egress string) int {
	mtu := tunnelMTU(h.file)
	h.role.mu.Lock()
	snap := h.snapshot
	h.role.mu.Unlock()
	for _, m := range snap.Machines {
		if m.Name != egress || m.Role != config.RoleEgress || !m.Address.IsValid() {
			continue
		}
		underlay, err := routeMTU(m.Address.Addr())
		if err != nil {
			h.log.Warn("MTU of the way to the egress is not known", "egress", egress, "err", err)
			continue
		}
		mtu = min(mtu, hostnet.InnerMTU(underlay, m.Address.Addr()))
	}
	return mtu
}

// routeMTU is the MTU of this machine's route to a.
func routeMTU(a netip.Addr) (int, error) {
	here, err := hostnet.CurrentNS()
	if err != nil {
		return 0, err
	}
	defer here.Close()
	conn, err := here.Open()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	return conn.RouteMTU(a)
}
