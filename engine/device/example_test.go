package device_test

import (
	"fmt"

	"github.com/fe919326/spillway/engine/device"
)

// A pipe stands in for an interface: what one end writes, the other reads.
func ExampleNewPipe() {
	task, engine := device.NewPipe()
	defer task.Close()
	defer engine.Close()

	b := device.NewBatch()
	b.Append([]byte{0x45, 0, 0, 20}).Port = 7
	task.Write(b)

	if err := engine.Read(b); err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range b.Packets {
		fmt.Printf("port %d: %d bytes\n", p.Port, len(p.Data))
	}
	// Output: port 7: 4 bytes
}
