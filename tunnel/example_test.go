package tunnel_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/tunnel"
)

// Two machines in one process: a host sends a packet to an egress, which sees
// whose it is.
func Example() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	open := func() *tunnel.Stock {
		key, err := tunnel.GeneratePrivateKey()
		if err != nil {
			panic(err)
		}
		t, err := tunnel.NewStock(tunnel.Config{PrivateKey: key})
		if err != nil {
			panic(err)
		}
		go func() { ended <- t.Run(ctx) }()
		<-t.Ready()
		return t
	}
	host, egress := open(), open()

	// The egress waits for the host to call, and takes one prefix from it.
	err := egress.SetPeers([]tunnel.Peer{{
		Name: "host-7", ID: 7, PublicKey: host.PublicKey(),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.112.4.0/24")},
	}})
	fmt.Println("egress peers:", err)
	err = host.SetPeers([]tunnel.Peer{{
		Name: "egress-1", ID: 1, PublicKey: egress.PublicKey(),
		Addr:       netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(egress.ListenPort())),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
	}})
	fmt.Println("host peers:", err)

	b := packet.NewBatch()
	b.Append([]byte{ // IPv4, protocol 253 (for experiments), 100.112.4.2 to 10.0.1.20
		0x45, 0, 0, 24, 0, 0, 0x40, 0, 64, 253, 0xca, 0x04,
		100, 112, 4, 2, 10, 0, 1, 20, 'h', 'e', 'y', '!',
	})
	host.Seal(b)
	if err := egress.Open(b); err != nil {
		panic(err)
	}
	fmt.Printf("peer %d sent %q\n", b.Packets[0].Peer, b.Packets[0].Data[20:])

	stop()
	fmt.Println(<-ended, <-ended)
	// Output:
	// egress peers: <nil>
	// host peers: <nil>
	// peer 7 sent "hey!"
	// <nil> <nil>
}
