package hostnet

import "net/netip"

// MaxTunnelMTU is the largest MTU a tunnel interface is given, in bytes:
// WireGuard's customary 1420, which fits a 1500-byte path of either family.
const MaxTunnelMTU = 1420

// MinTunnelMTU is the smallest MTU that carries IPv6 (RFC 8200 section 5).
const MinTunnelMTU = 1280

// TunnelMTU is InnerMTU, but at most MaxTunnelMTU: the MTU to take where nobody
// asked for another.
func TunnelMTU(underlay int, peer netip.Addr) int {
	return min(MaxTunnelMTU, InnerMTU(underlay, peer))
}

// InnerMTU is the largest MTU inside the tunnel when the underlay's route to
// the peer has this MTU (bytes; 0 or less: unknown, taken as 1500): the outer
// IPv4 (20) or IPv6 (40) header, UDP (8) and WireGuard's data header and tag
// (32) are taken off. It is at least MinTunnelMTU.
func InnerMTU(underlay int, peer netip.Addr) int {
	if underlay <= 0 {
		underlay = 1500
	}
	overhead := 60
	if peer.Unmap().Is6() {
		overhead = 80
	}
	return max(MinTunnelMTU, underlay-overhead)
}
