package nat_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"github.com/fe919326/spillway/nat"
)

// A task asks a name server; the question leaves from the shared address, the
// answer finds its way back to the task.
func Example() {
	var m *nat.Mapper
	now := clock.Mono(time.Hour)
	table, err := flowtable.Open(flowtable.Config{
		MaxFlows: 1000,
		OnRemove: func(e *flowtable.Entry) { m.Released(e) },
	}, now)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer table.Close()
	m, err = nat.New(nat.Config{
		Table:    table,
		Secret:   [32]byte{1}, // 32 random bytes, kept with the address
		V4:       netip.MustParseAddr("10.0.1.50"),
		Reserved: []nat.PortRange{{First: 51820, Last: 51820}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	task := netip.MustParseAddrPort("100.112.0.7:40000")
	dns := netip.MustParseAddrPort("10.0.1.2:53")

	// Out: choose a port, insert the flow, rewrite the packet.
	var p packet.Parsed
	var s flowtable.Segment
	question := packet.Packet{Data: pkt.UDP(task, dns, []byte("who is db?"))}
	fmt.Println("parse:", p.Parse(&question))
	flowtable.SegmentOf(&p, &s)
	ref, r := m.Admit(&p, &s, nat.Meta{Task: 7}, now)
	fmt.Println("admit:", r)
	outside, port := table.Entry(ref).Outside()
	nat.RewriteSource(&p, outside, port)
	fmt.Println("leaves from", packet.ToNetip(p.Src), "and any checksum is right:", pkt.Check(p.Data) == nil)

	// Back: the answer's tuple finds the flow.
	answer := packet.Packet{Data: pkt.UDP(dns, netip.AddrPortFrom(netip.MustParseAddr("10.0.1.50"), port), []byte("10.0.1.20"))}
	fmt.Println("parse:", p.Parse(&answer))
	k := flowtable.TupleOf(&p)
	ref, direction := table.Lookup(&k)
	inner := table.Entry(ref).Inner()
	nat.RewriteDestination(&p, inner.Src, inner.SrcPort)
	fmt.Println(direction, "to", netip.AddrPortFrom(packet.ToNetip(p.Dst), p.DstPort))

	// Output:
	// parse: ok
	// admit: ok
	// leaves from 10.0.1.50 and any checksum is right: true
	// parse: ok
	// inbound to 100.112.0.7:40000
}
