package device_test

import (
	"fmt"
	"log"
	"runtime"

	"github.com/fe919326/spillway/engine/device"
)

// A group serves the interfaces of many tasks. This needs CAP_NET_ADMIN.
func ExampleGroup() {
	group, err := device.NewGroup(device.Config{
		OnPortDown: func(port uint32, err error) { log.Printf("task %d: %v", port, err) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()

	// The interface is made in the network namespace of this OS thread.
	runtime.LockOSThread()
	tun, err := device.OpenTUN(device.TUNConfig{Name: "spill0"})
	runtime.UnlockOSThread()
	if err != nil {
		log.Fatal(err)
	}
	if err := group.Add(7, tun); err != nil {
		tun.Close()
		log.Fatal(err)
	}

	for b := device.NewBatch(); group.Read(b) == nil; {
		for i := range b.Packets {
			fmt.Printf("port %d: %d bytes\n", b.Packets[i].Port, len(b.Packets[i].Data))
		}
	}
}
