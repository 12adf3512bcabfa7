package flowlog_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/fe919326/spillway/engine/flowlog"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

// A flow and a refusal become lines in the form of AWS VPC flow logs.
func Example() {
	var out bytes.Buffer
	clk := clock.NewFake()
	log, err := flowlog.New(flowlog.Config{Writer: &out, Clock: clk})
	if err != nil {
		fmt.Println(err)
		return
	}
	eni := log.AddEndpoint(flowlog.EndpointInfo{Account: "default", ID: "eni-1", V4: netip.MustParseAddr("10.0.1.50")})

	log.Sample(&flowlog.FlowSample{
		Endpoint: eni, Task: "task-1",
		Inner:   netip.MustParseAddrPort("100.112.0.7:40000"),
		Outside: netip.MustParseAddrPort("10.0.1.50:20641"),
		Remote:  netip.MustParseAddrPort("10.0.1.9:5432"),
		Proto:   packet.ProtoTCP, OutPackets: 10, OutBytes: 840, InPackets: 8, InBytes: 5120,
		First: clk.Mono().Add(-30 * time.Second), Last: clk.Mono(),
	})
	log.Record(&flowlog.Record{
		Endpoint: eni, Task: "task-1",
		Inner:  netip.MustParseAddrPort("100.112.0.7:40001"),
		Remote: netip.MustParseAddrPort("10.0.1.9:22"),
		Proto:  packet.ProtoTCP, Bytes: 60,
		Direction: flowlog.Egress, Action: flowlog.Reject, Reason: packet.DeniedByPolicy,
	})

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Run writes what was handed over before it ends
	if err := log.Run(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Print(out.String())
	// Output:
	// 2 default eni-1 10.0.1.50 10.0.1.9 40001 22 6 1 60 1767225600 1767225600 REJECT OK
	// 2 default eni-1 10.0.1.50 10.0.1.9 20641 5432 6 10 840 1767225570 1767225600 ACCEPT OK
	// 2 default eni-1 10.0.1.9 10.0.1.50 5432 20641 6 8 5120 1767225570 1767225600 ACCEPT OK
}

func ExampleParseFormat() {
	f, err := flowlog.ParseFormat("${version} ${pkt-srcaddr} ${dstaddr} ${action} ${reject-reason}")
	if err != nil {
		fmt.Println(err)
		return
	}
	line := flowlog.Line{Record: flowlog.Record{
		Inner:     netip.MustParseAddrPort("100.112.0.7:40001"),
		Remote:    netip.MustParseAddrPort("10.0.1.9:22"),
		Direction: flowlog.Egress, Action: flowlog.Reject, Reason: packet.DeniedByPolicy,
	}}
	fmt.Printf("%s", f.Append(nil, &line))
	// Output: 8 100.112.0.7 10.0.1.9 REJECT denied-by-policy
}
