package engine

import "github.com/fe919326/spillway/internal/packet"

// Hop is a place in the path where packets can be watched.
type Hop uint8

// The hops, in the order in which a question and its answer meet them.
const (
	HostOutbound     Hop = iota // a task's packet, on its host
	EndpointOutbound            // the same packet at the endpoint
	EndpointInbound             // a packet from the subnet
	HostInbound                 // the answer, on the host
)

// String returns the hop's name.
func (h Hop) String() string {
	return [...]string{"host-outbound", "endpoint-outbound", "endpoint-inbound", "host-inbound"}[h&3]
}

// Tap sees every packet at a hop, after the decision: pk as it goes on, or as
// it came with the reason why it does not. It runs on the worker and must be
// quick, and it must not keep pk or its bytes.
type Tap func(h Hop, pk *packet.Packet, r Reason)

// Packet is one IP packet, or super-packet, as a Tap sees it.
type Packet = packet.Packet

// SetTap installs t on every hop; nil takes it away. Without one the path pays
// a single load per batch.
func (e *Engine) SetTap(t Tap) {
	if t == nil {
		e.tap.Store(nil)
		return
	}
	e.tap.Store(&t)
}
