package flowtable_test

import (
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// A task's packet starts a flow; the answer finds it by the translated tuple.
func Example() {
	now := clock.System().Mono()
	table, err := flowtable.Open(flowtable.Config{MaxFlows: 1024}, now)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer table.Close()

	flow := flowtable.Flow{
		Inner: flowtable.Tuple{
			Src: netip.MustParseAddr("100.112.0.7").As16(), SrcPort: 40000,
			Dst: netip.MustParseAddr("10.0.1.9").As16(), DstPort: 5432,
			Proto: packet.ProtoTCP,
		},
		Outside: netip.MustParseAddr("10.0.1.50").As16(), OutsidePort: 31234,
		Task: 7,
	}
	ref, why := table.Insert(&flow, &flowtable.Segment{Flags: packet.SYN, Seq: 1000, Window: 64000, Wire: 1, Bytes: 60}, now)
	fmt.Println(why, table.Entry(ref).State())

	reply := flow.Reply()
	ref, direction := table.Lookup(&reply)
	why = table.Observe(ref, direction, &flowtable.Segment{
		Flags: packet.SYN | packet.ACK, Seq: 9000, Ack: 1001, Window: 64000, Wire: 1, Bytes: 60}, now)
	fmt.Println(why, direction, table.Entry(ref).State())

	// A forged RST that does not have the exact sequence number ends nothing.
	why = table.Observe(ref, direction, &flowtable.Segment{Flags: packet.RST, Seq: 77, Wire: 1, Bytes: 40}, now)
	fmt.Println(why, table.Entry(ref).State())
	// Output:
	// ok syn-sent
	// ok inbound syn-received
	// out-of-window syn-received
}

// A table in a file survives its process.
func ExampleOpen() {
	fmt.Println(flowtable.CheckDir("/proc"))
	// Output:
	// /proc: directory is not on a tmpfs (file system type 0x9fa0)
}
