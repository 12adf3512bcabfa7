package packet

// Reason says what was decided for a packet, and why. It feeds drop counters,
// flow logs, explanations and tests. The zero Reason is a refusal: code that
// forgets to decide drops.
type Reason uint8

// The reasons. OK is the only one that lets a packet pass.
const (
	Undecided Reason = iota // nobody decided: dropped
	OK

	// What cannot be parsed.
	Truncated           // shorter than its headers say
	BadVersion          // neither IPv4 nor IPv6
	BadHeader           // header length or field impossible
	BadChecksum         // IPv4 header, TCP, UDP or ICMP checksum wrong
	BadOption           // IPv4 option refused: source route, record route, malformed
	BadExtension        // IPv6 extension header unknown, over the limit, or out of order
	RoutingHeader       // IPv6 routing header with segments left, or type 0
	BadFlags            // TCP flags that no stack sends (RFC 9293)
	BadOffload          // a virtio-net header that lies
	FragmentRefused     // fragment that breaks RFC 1858, 3128, 5722 or 7112, or cannot be tracked
	UnsupportedProtocol // upper-layer protocol that is not carried
	Martian             // source or destination never valid here (RFC 6890)

	// Identity.
	SpoofedSource // source address not delegated to the port or peer
	NotDelegated  // inner address outside every known prefix

	// Tracking.
	NoFlow         // not the first packet of a flow, and no flow
	Unsolicited    // came from the subnet side without a flow
	WrongDirection // a first packet from the side that may not start flows
	OutOfWindow    // TCP segment outside the tracked window
	InvalidState   // TCP segment that the state does not allow
	FlowExpired    // the flow idled out or was cut

	// Policy.
	DeniedByPolicy // no security-group rule allows it
	Hairpin        // towards one of our own outside addresses
	TaskToTask     // towards another task's inner address
	LocalRefused   // towards an address of the engine itself, metadata, link-local

	// Room.
	TableFull      // flow table at its cap
	TaskFlowLimit  // the task's flow cap
	TaskRateLimit  // the task's new-flow or packet rate
	PortsExhausted // no outside port free for this destination
	TaskPortLimit  // the task's share of ports for this destination
	TupleTaken     // outside tuple in use (internal to port choice)
	FlowExists     // another worker inserted the flow first (internal)

	// The way out.
	TTLExceeded  // TTL or hop limit reached zero
	TooBig       // larger than the next link and not to be fragmented
	NoRoute      // no endpoint, tunnel or port for it
	NotOwner     // this machine does not own the outside address now
	QueueFull    // bounded queue at its cap
	DeviceError  // the kernel refused the packet
	TunnelDown   // no session with the peer
	ShuttingDown // the engine is closing

	BadMTU // ICMP error that asks for an MTU below the floor

	// NumReasons is the number of reasons, for arrays of counters.
	NumReasons
)

var reasonNames = [NumReasons]string{
	Undecided: "undecided", OK: "ok",
	Truncated: "truncated", BadVersion: "bad-version", BadHeader: "bad-header",
	BadChecksum: "bad-checksum", BadOption: "bad-option", BadExtension: "bad-extension",
	RoutingHeader: "routing-header", BadFlags: "bad-flags", BadOffload: "bad-offload",
	FragmentRefused: "fragment-refused", UnsupportedProtocol: "unsupported-protocol", Martian: "martian",
	SpoofedSource: "spoofed-source", NotDelegated: "not-delegated",
	NoFlow: "no-flow", Unsolicited: "unsolicited", WrongDirection: "wrong-direction",
	OutOfWindow: "out-of-window", InvalidState: "invalid-state", FlowExpired: "flow-expired",
	DeniedByPolicy: "denied-by-policy", Hairpin: "hairpin", TaskToTask: "task-to-task", LocalRefused: "local-refused",
	TableFull: "table-full", TaskFlowLimit: "task-flow-limit", TaskRateLimit: "task-rate-limit",
	PortsExhausted: "ports-exhausted", TaskPortLimit: "task-port-limit", TupleTaken: "tuple-taken", FlowExists: "flow-exists",
	TTLExceeded: "ttl-exceeded", TooBig: "too-big", NoRoute: "no-route", NotOwner: "not-owner",
	QueueFull: "queue-full", DeviceError: "device-error", TunnelDown: "tunnel-down", ShuttingDown: "shutting-down",
	BadMTU: "bad-mtu",
}

// String returns the reason's name as logs, metrics and the command line
// show it. It never allocates.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonNames[r]
	}
	return "unknown"
}

// ParseReason is the inverse of String.
func ParseReason(name string) (Reason, bool) {
	for r, n := range reasonNames {
		if n == name {
			return Reason(r), true
		}
	}
	return Undecided, false
}
