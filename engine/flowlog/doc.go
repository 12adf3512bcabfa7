// Package flowlog writes what an endpoint's flows carried and what was refused,
// in the form of AWS VPC flow logs or as JSON, without ever making a packet
// wait.
//
// Packet workers hand refusals (Logger.Record) and the last counters of ended
// flows (Logger.Sample) to bounded rings: a full ring drops and counts. The
// engine's sampler hands over what live flows carried since the last time
// (Logger.SampleWait) and ends the interval (Logger.EndInterval). One
// goroutine, Logger.Run, aggregates, formats and writes.
//
// Nothing is counted twice and nothing is lost silently: the packets of all
// lines, those with log-status SKIPDATA included, add up to the packets that
// were handed over.
//
// # AWS format
//
// The default format is the version 2 line: version, account-id, interface-id,
// srcaddr, dstaddr, srcport, dstport, protocol, packets, bytes, start, end,
// action, log-status, separated by single spaces. The interface is the
// endpoint: srcaddr of egress and dstaddr of ingress is the endpoint's own
// shared address, and the port next to it is the outside port. A packet that
// was refused before it had an outside port shows the port it came with. The
// task's inner address is in pkt-srcaddr (egress) or pkt-dstaddr (ingress) of
// a custom format. Ports of ICMP are 0. NODATA lines have "-" in the fields
// that describe traffic. SKIPDATA lines too, but for packets and bytes: these
// say how many were lost from the log.
//
// # JSON format
//
// One object per line with these keys, absent where not applicable:
//
//	time        when the line was made (RFC 3339, UTC, nanoseconds), as start and end
//	log_status  "OK", "NODATA" or "SKIPDATA"
//	account, endpoint, subnet, vpc, zone, region
//	task, service
//	direction   "egress" or "ingress", relative to the endpoint
//	action      "ACCEPT" or "REJECT"
//	reason      "ok", or why the packets were refused
//	group, rule the security group and the index of its rule that let the flow begin
//	protocol    "tcp", "udp", "icmp", "icmpv6" or a number as a string
//	inner       the task's address and port
//	outside     the endpoint's address and port
//	remote      the address and port on the subnet
//	icmp_type, icmp_code
//	tcp_flags   FIN 1, SYN 2, RST 4, SYN-ACK 18, or'ed over the interval
//	packets, bytes
//	start, end  first and last packet (of NODATA and SKIPDATA: the interval)
//	lost        SKIPDATA only: how many records were lost; packets and bytes tell what was in them
package flowlog
