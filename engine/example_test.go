package engine_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/device"
	"github.com/fe919326/spillway/tunnel"
)

// An egress that owns one endpoint on a subnet. Its link is an in-memory pipe
// here; `spillway egress` gives it a group of TUN devices.
func Example() {
	subnet, engineSide := device.NewPipe()
	defer subnet.Close()
	key, err := tunnel.GeneratePrivateKey()
	if err != nil {
		panic(err)
	}
	host, err := tunnel.GeneratePrivateKey()
	if err != nil {
		panic(err)
	}

	e, err := engine.New(engine.Config{
		Machine:  "egress-1",
		Role:     engine.RoleEgress,
		Link:     engineSide,
		MaxFlows: 1024,
		Tunnels: func(string) (engine.Tunnel, error) {
			return tunnel.NewStock(tunnel.Config{PrivateKey: key})
		},
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.Ready()

	const port = 1 // of the subnet on the link
	e.AddSubnet("default", "subnet-a", port)
	err = e.Apply(&api.Snapshot{
		Subnets: []api.Subnet{{Account: "default", Name: "subnet-a", Zone: "a"}},
		SecurityGroups: []api.SecurityGroup{{Account: "default", Name: "sg-db", Egress: []api.Rule{
			{Protocol: "tcp", FromPort: 5432, ToPort: 5432, CIDR: netip.MustParsePrefix("10.0.1.0/24")},
		}}},
		Endpoints: []api.Endpoint{{
			ID: "eni-1", Account: "default", Subnet: "subnet-a", SecurityGroups: []string{"sg-db"},
			Services: []string{"web"}, Secret: []byte("32 bytes that nobody else knows!"),
			Addresses: []api.EndpointAddress{{
				V4: netip.MustParseAddr("10.0.1.50"), Owner: "egress-1",
				Prefixes: []api.Delegation{{Machine: "host-1", Prefix: netip.MustParsePrefix("100.112.0.0/22")}},
			}},
		}},
		Machines:   []api.Machine{{Name: "host-1", Role: "host", PublicKeys: []string{host.Public().String()}}},
		InnerPools: []netip.Prefix{netip.MustParsePrefix("100.112.0.0/12")},
	})
	if err != nil {
		panic(err)
	}
	for _, ep := range e.Endpoints() {
		fmt.Println(ep.ID, "is", ep.Addresses[0].V4, "with", ep.Flows, "flows")
	}
	cancel()
	fmt.Println("ended:", <-done)
	// Output:
	// eni-1 is 10.0.1.50 with 0 flows
	// ended: <nil>
}
