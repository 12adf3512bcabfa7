package packet

import "gvisor.dev/gvisor/pkg/tcpip/header"

// DontFragment reports whether routers must not fragment the packet: IPv4 with
// DF set, and every IPv6 packet (RFC 8200 section 4.5). p must have been
// parsed.
func (p *Parsed) DontFragment() bool {
	return p.Version == 6 || header.IPv4(p.Data).Flags()&header.IPv4FlagDontFragment != 0
}
