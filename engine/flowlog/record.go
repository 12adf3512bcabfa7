package flowlog

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// Reason says why a packet was refused.
type Reason = packet.Reason

// Direction is relative to the endpoint's interface on the subnet.
type Direction uint8

// The directions.
const (
	Egress  Direction = 1 // from a task to the subnet
	Ingress Direction = 2 // from the subnet to a task, or to nobody
)

// String returns "egress", "ingress" or "-".
func (d Direction) String() string {
	switch d {
	case Egress:
		return "egress"
	case Ingress:
		return "ingress"
	}
	return "-"
}

// Action says what became of the packets. The zero Action is a refusal.
type Action uint8

// The actions.
const (
	Reject Action = iota
	Accept
)

// String returns "REJECT" or "ACCEPT".
func (a Action) String() string {
	if a == Accept {
		return "ACCEPT"
	}
	return "REJECT"
}

// Status is a line's log-status.
type Status uint8

// The statuses.
const (
	StatusOK       Status = iota // the line describes packets
	StatusNoData                 // the endpoint carried and refused nothing in the interval
	StatusSkipData               // records were lost
)

// String returns the word that stands in the log.
func (s Status) String() string {
	switch s {
	case StatusNoData:
		return "NODATA"
	case StatusSkipData:
		return "SKIPDATA"
	}
	return "OK"
}

// EndpointInfo is what lines tell about an endpoint. Empty fields show as "-".
// Texts are encoded where they could break a line, and cut at 128 bytes.
type EndpointInfo struct {
	Account string
	ID      string // eni-…
	Subnet  string
	VPC     string
	Zone    string
	Region  string
	// V4 and V6 are shown for packets whose Outside is not known.
	V4, V6 netip.Addr
}

// Endpoint is what records belong to. Make one with NewEndpoint, or with
// Logger.AddEndpoint so that the log tells NODATA of it. Safe for concurrent
// use.
type Endpoint struct {
	info atomic.Pointer[encodedInfo]
	// What was lost and not yet told.
	lostRecords, lostPackets, lostBytes atomic.Uint64

	// Owned by the goroutine that aggregates.
	hadLine bool
}

// NewEndpoint returns an endpoint that belongs to no Logger.
func NewEndpoint(info EndpointInfo) *Endpoint {
	e := &Endpoint{}
	e.info.Store(encodeInfo(info))
	return e
}

// Info returns what the endpoint was made with.
func (e *Endpoint) Info() EndpointInfo { return e.info.Load().EndpointInfo }

// lose counts records that no line will tell of.
func (e *Endpoint) lose(records, packets, bytes uint64) {
	e.lostPackets.Add(packets)
	e.lostBytes.Add(bytes)
	e.lostRecords.Add(records)
}

// takeLost returns what was lost since the last call.
func (e *Endpoint) takeLost() (records, packets, bytes uint64) {
	return e.lostRecords.Swap(0), e.lostPackets.Swap(0), e.lostBytes.Swap(0)
}

// Record is a number of packets of one 5-tuple, in one direction, that met the
// same fate: usually a single packet that was refused. It holds no memory of
// its own, so that filling and handing over one costs no allocation.
type Record struct {
	// Endpoint is whose interface the packets passed or should have passed.
	// nil means that it is not known: account and interface show as "-".
	Endpoint *Endpoint
	// Task and Service name the task, where known.
	Task, Service string
	// Group and Rule name the security-group rule that let the flow begin.
	// Empty for refusals; then Rule is ignored.
	Group string
	Rule  int32

	// Inner is the task's side inside the tunnel, zero for packets that belong
	// to no task. Outside is the endpoint's side on the subnet; its port, or
	// all of it, is zero for packets that were refused before they were
	// translated. Remote is the other side on the subnet.
	Inner, Outside, Remote netip.AddrPort

	// First and Last are when the first and the last packet came. Zero means
	// the time at which the log sees the record.
	First, Last clock.Mono

	Packets uint64 // on the wire, super-packets cut; 0 means 1
	Bytes   uint64 // IP header included

	Proto    uint8
	ICMPType uint8 // ICMP and ICMPv6 only
	ICMPCode uint8
	// TCPFlags are the flags of the header's 13th octet: of the packet, or
	// or'ed over all packets if there are several.
	TCPFlags  uint8
	Direction Direction
	Action    Action
	Reason    Reason // OK for accepted packets
}

// FlowSample is what one flow carried since it was last sampled: the engine
// reads the flow's counters, keeps what it read beside the flow, and hands over
// the difference. After a sample was handed over its packets are the log's,
// even if the log had no room and counted them as lost.
type FlowSample struct {
	Endpoint      *Endpoint // nil means not known
	Task, Service string
	Group         string // the security group whose rule let the flow begin
	Rule          int32  // the rule's index in it

	Inner, Outside, Remote netip.AddrPort
	Proto                  uint8
	ICMPType, ICMPCode     uint8 // of the first packet; ICMP and ICMPv6 only

	// First and Last are the times of the first and the last packet since the
	// last sample. A First of zero means the beginning of the interval (or
	// Last, if that is earlier), a Last of zero the time at which the log sees
	// the sample.
	First, Last clock.Mono

	OutPackets, OutBytes uint64 // task to remote
	InPackets, InBytes   uint64 // remote to task
	OutFlags, InFlags    uint8  // TCP flags or'ed since the last sample
}

// Line is one line of the log, before it is formatted.
type Line struct {
	Record
	Status Status
	// Start and End are First and Last as wall clock time. End is never before
	// Start, whatever the clock did.
	Start, End time.Time
	// Made is when the line was made.
	Made time.Time
	// Lost is how many records were lost: StatusSkipData only.
	Lost uint64
}

// reportedFlags are the flags that flow logs show: FIN, SYN and RST, and ACK
// only together with SYN in one packet (SYN-ACK, 18).
func reportedFlags(flags uint8, synAck bool) uint8 {
	r := flags & (packet.FIN | packet.SYN | packet.RST)
	if synAck {
		r |= packet.ACK
	}
	return r
}
