package flowtable

import (
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

const (
	protoICMP   = packet.ProtoICMP
	protoTCP    = packet.ProtoTCP
	protoUDP    = packet.ProtoUDP
	protoICMPv6 = packet.ProtoICMPv6

	portDNS = 53
)

// State is the state of a flow.
type State uint8

// The states. The TCP ones follow RFC 5382 and RFC 7857 section 2 as seen by
// someone in the middle; "client" is the task, "server" the other end.
const (
	NoState     State = iota
	OneWay            // UDP, ICMP: no answer yet
	TwoWay            // UDP, ICMP: answered
	SynSent           // the client's SYN passed
	SynCross          // and a SYN of the server: simultaneous open
	SynReceived       // the server's SYN-ACK passed
	Established       // the handshake is complete
	FinClient         // half-closed: the client sent a FIN
	FinServer         // half-closed: the server sent a FIN
	FinBoth           // both sent a FIN, not both are acknowledged
	TimeWait          // finished: both FINs are acknowledged
	Reset             // finished: a RST with the exact sequence number passed
	numStates
)

var stateNames = [numStates]string{
	NoState: "none", OneWay: "one-way", TwoWay: "two-way",
	SynSent: "syn-sent", SynCross: "syn-cross", SynReceived: "syn-received", Established: "established",
	FinClient: "fin-client", FinServer: "fin-server", FinBoth: "fin-both", TimeWait: "time-wait", Reset: "reset",
}

// String implements fmt.Stringer.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "unknown"
}

// HalfOpen reports whether a TCP handshake is under way.
func (s State) HalfOpen() bool { return s >= SynSent && s <= SynReceived }

// Finished reports whether the flow only holds its tuple against other tasks.
func (s State) Finished() bool { return s == TimeWait || s == Reset }

// fits reports whether s is a state of protocol proto.
func (s State) fits(proto uint8) bool {
	switch proto {
	case protoTCP:
		return s >= SynSent && s < numStates
	case protoUDP, protoICMP, protoICMPv6:
		return s == OneWay || s == TwoWay
	}
	return false
}

// tcp is the idle time of a TCP flow in state s.
func (t *Timeouts) tcp(s State, f connFlags) time.Duration {
	switch s {
	case SynSent, SynCross, SynReceived:
		return t.HalfOpen
	case Established:
		if f&flagRevived != 0 {
			return t.HalfClosed
		}
		return t.Established
	case TimeWait:
		if f&flagInsideFirst != 0 {
			return t.HoldClient
		}
		return t.HoldServer
	case Reset:
		return t.HoldServer
	}
	return t.HalfClosed
}

// datagram is the idle time of a UDP or ICMP flow after a packet of direction
// d. A question to a DNS server waits like any one-way flow; its answer makes
// the flow short-lived.
func (t *Timeouts) datagram(proto uint8, remotePort uint16, s State, d Direction) time.Duration {
	switch {
	case proto != protoUDP:
		return t.ICMP
	case remotePort == portDNS && d == Inbound:
		return t.DNS
	case remotePort == portDNS, s == OneWay:
		return t.UDPOneWay
	}
	return t.UDP
}
