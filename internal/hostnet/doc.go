// Package hostnet is everything spillway asks of the machine's kernel network:
// namespaces, links, addresses, routes, rules, packet-filter guards, and the
// presence of an endpoint's address on its subnet.
//
// It has three parts:
//
//   - tools: NS (a network namespace), Conn (links, addresses, routes, rules,
//     neighbours and nftables inside one namespace), sysctls and offloads;
//   - the task side: Prepare puts a namespace into the fail-closed state, then
//     Attachment.Configure gives it its tunnel interface;
//   - the subnet side: Subnet prepares forwarding for endpoint addresses,
//     Responder answers ARP and neighbour discovery for them, Claimer takes
//     them on the subnet.
//
// All of it speaks netlink and nftables itself and starts no command, so that
// a machine without ip(8) and nft(8) will do. What is left behind after a
// crash is found again by fixed names, priorities and RouteProtocol, and
// removed by Cleanup. The package is for Linux; elsewhere only the pure parts
// (frames, MTU arithmetic) exist.
package hostnet
