package packet_test

import (
	"bytes"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
)

// A packet has the promised room around it, whole and its own.
func TestBatchRoom(t *testing.T) {
	b := packet.NewBatch()
	for i := 0; b.Append(bytes.Repeat([]byte{byte(i + 1)}, 1+i*7)) != nil; i++ {
		if i > packet.MaxBatch {
			t.Fatal("more packets than a batch holds")
		}
	}
	if len(b.Packets) != packet.MaxBatch {
		t.Fatalf("%d packets, want %d", len(b.Packets), packet.MaxBatch)
	}
	for i := range b.Packets {
		d := b.Packets[i].Data
		if cap(d)-len(d) < packet.Tailroom {
			t.Fatalf("packet %d: %d bytes behind it, want %d", i, cap(d)-len(d), packet.Tailroom)
		}
		clear(d[len(d) : len(d)+packet.Tailroom]) // what Seal writes
	}
	for i := range b.Packets {
		if want := bytes.Repeat([]byte{byte(i + 1)}, 1+i*7); !bytes.Equal(b.Packets[i].Data, want) {
			t.Fatalf("packet %d: a neighbour's tail is in it", i)
		}
	}
}

func TestBatchFull(t *testing.T) {
	b := packet.NewBatch()
	n := 0
	for !b.Full(packet.MaxPacket) {
		if b.Append(make([]byte, packet.MaxPacket)) == nil {
			t.Fatal("not full, but no room")
		}
		n++
	}
	if n < 2 {
		t.Errorf("%d largest packets fit, want at least 2", n)
	}
	if b.Append(make([]byte, packet.MaxPacket)) != nil || b.ReserveFrom(12, packet.MaxPacket) != nil {
		t.Error("room in a full batch")
	}
	if b.Append(nil) != nil || b.ReserveFrom(packet.Headroom+1, 10) != nil {
		t.Error("an empty packet, or more headroom than there is")
	}
	b.Reset()
	if len(b.Packets) != 0 || b.Full(packet.MaxPacket) {
		t.Error("Reset left something")
	}
}

// ReserveFrom shows the headroom in front of the packet that Commit then keeps.
func TestBatchReserveFrom(t *testing.T) {
	b := packet.NewBatch()
	room := b.ReserveFrom(12, 100)
	if len(room) != 112 {
		t.Fatalf("%d bytes, want 112", len(room))
	}
	for i := range room {
		room[i] = byte(i)
	}
	p := b.Commit(50)
	if len(p.Data) != 50 || p.Data[0] != 12 {
		t.Errorf("packet of %d bytes starts with %d; want 50 bytes from 12 on", len(p.Data), p.Data[0])
	}
	p.Drop()
	if p.Data != nil || len(b.Packets) != 1 {
		t.Error("a dropped packet keeps its place and no bytes")
	}
}

func TestBatchSwap(t *testing.T) {
	a, b := packet.NewBatch(), packet.NewBatch()
	a.Append([]byte("mine"))
	a.Swap(b)
	if len(a.Packets) != 0 || len(b.Packets) != 1 || string(b.Packets[0].Data) != "mine" {
		t.Error("contents did not change hands")
	}
	a.Append([]byte("new"))
	if string(b.Packets[0].Data) != "mine" {
		t.Error("memory did not change hands")
	}
}

func TestGSOSegments(t *testing.T) {
	for _, tc := range []struct {
		g       packet.GSO
		payload int
		want    int
	}{
		{packet.GSO{}, 0, 1},
		{packet.GSO{}, 60000, 1},
		{packet.GSO{Type: packet.GSOTCP4, Size: 1000}, 0, 1},
		{packet.GSO{Type: packet.GSOTCP4, Size: 1000}, 1000, 1},
		{packet.GSO{Type: packet.GSOUDP, Size: 1000}, 1001, 2},
		{packet.GSO{Type: packet.GSOTCP6, Size: 1}, 65000, 65000},
		{packet.GSO{Type: packet.GSOTCP6}, 65000, 1},
	} {
		if got := tc.g.Segments(tc.payload); got != tc.want {
			t.Errorf("%+v with %d bytes: %d segments, want %d", tc.g, tc.payload, got, tc.want)
		}
	}
}

// Every reason has a name of its own that leads back to it; the zero one
// refuses.
func TestReasonNames(t *testing.T) {
	seen := map[string]packet.Reason{}
	for r := packet.Reason(0); r < packet.NumReasons; r++ {
		name := r.String()
		if other, dup := seen[name]; dup || name == "" {
			t.Errorf("reason %d has the name %q of reason %d", r, name, other)
		}
		seen[name] = r
		if back, ok := packet.ParseReason(name); !ok || back != r {
			t.Errorf("%q leads to %d, want %d", name, back, r)
		}
	}
	var zero packet.Reason
	if zero == packet.OK {
		t.Error("forgetting to decide lets a packet pass")
	}
	if _, ok := packet.ParseReason("no such reason"); ok {
		t.Error("a name that does not exist was found")
	}
	if packet.NumReasons.String() != "unknown" {
		t.Error("a reason out of range has a name")
	}
}
