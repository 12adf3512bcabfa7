// Package packet is the one place where spillway reads bytes that came from
// outside as IP packets.
//
// Parse is the single front door: a packet that has not passed it is never
// looked at by another package, and offsets in a Parsed are always inside its
// Data. Everything else here works on a packet that was parsed: incremental
// checksums (RFC 1624), TTL, MSS, the RST and ICMP errors the engine answers
// with, and the Segmenter that cuts a super-packet into wire packets.
//
// Headers are read and written through gVisor's views (tcpip/header) and
// summed by its checksum package. Nothing here allocates per packet, starts a
// goroutine or knows the time. Values are owned by one worker at a time.
package packet
