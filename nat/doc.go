// Package nat puts the flows of many tasks behind one outside address and
// brings the answers back.
//
// It has three parts, each usable without the others:
//
//   - in-place rewrites of a parsed packet (RewriteSource,
//     RewriteDestination): addresses, ports, checksums;
//   - translation of ICMP and ICMPv6 errors with the packet they quote
//     (EmbeddedTuple, RewriteErrorInbound, RewriteErrorOutbound);
//   - the Mapper, which chooses the outside port of a new flow and inserts the
//     flow into the flow table.
//
// # Ports
//
// The outside port of a flow is a keyed function of the inner address, the
// protocol and the inner port, over the fixed range 1024-65535. It is the same
// for every destination as long as it is free there, the same again when a
// flow is made anew after state was lost, and nobody outside can compute it.
// Where another flow holds it towards the same destination, a keyed walk over
// the whole range finds another: ports are shared per destination
// (address-and-port-dependent mapping, RFC 4787 section 4.1), so that every
// destination has the whole range. A UDP socket can be given one port for all
// destinations instead (Config.UDP).
//
// Deviations that follow, all on purpose: ports below 1024 are never used
// (RFC 4787 REQ-3a asks to keep their class), parity is not kept (REQ-4), and
// hairpinning is refused (REQ-9).
//
// # Checksums
//
// They are updated incrementally (RFC 1624 equation 3) and never recomputed:
// a packet that arrived corrupt leaves corrupt.
//
// Everything here is safe to call from several goroutines, as long as no two
// of them use the same *packet.Parsed. Nothing on a packet's way allocates.
package nat
