package device

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

func TestPipeCarriesPacketsAsTheyAre(t *testing.T) {
	a, b := NewPipe()
	defer a.Close()
	defer b.Close()
	w, r := NewBatch(), NewBatch()
	super := pkt.Super(pkt.TCP(client4, server4, packet.ACK, 1, 1, make([]byte, 9000)), 1400)
	super.Port = 7
	pkt.OfPacket(w, super)
	w.Append(pkt.UDP(client6, server6, []byte("dropped"))).Drop()
	plain := w.Append(pkt.UDP(client6, server6, []byte("hello")))
	plain.Port, plain.GSO.Verified = 9, true
	a.Write(w)
	w.Reset() // the pipe has its own copy
	if err := b.Read(r); err != nil || len(r.Packets) != 2 {
		t.Fatalf("Read: %v, %d packets, want 2", err, len(r.Packets))
	}
	if p := r.Packets[0]; !bytes.Equal(p.Data, super.Data) || p.GSO != super.GSO || p.Port != 7 {
		t.Errorf("super-packet changed on its way: %+v port %d", p.GSO, p.Port)
	}
	if p := r.Packets[1]; !p.GSO.Verified || p.Port != 9 {
		t.Errorf("plain packet changed on its way: %+v port %d", p.GSO, p.Port)
	}
	if s := a.Stats(); s.Packets != 2 || s.Dropped != 0 {
		t.Errorf("stats %+v, want 2 packets and no drop", s)
	}
}

func TestPipeDropsWhenFull(t *testing.T) {
	a, b := NewPipe()
	defer a.Close()
	defer b.Close()
	w := NewBatch()
	for range packet.MaxBatch {
		w.Append(pkt.UDP(client4, server4, []byte("x")))
	}
	const rounds = pipeDepth + 3
	for range rounds {
		a.Write(w) // never blocks
	}
	s := a.Stats()
	if s.Packets != pipeDepth*packet.MaxBatch || s.Dropped != 3*packet.MaxBatch {
		t.Fatalf("%+v: a pipe without a reader keeps %d packets and drops the rest", s, pipeDepth*packet.MaxBatch)
	}
	got := 0
	for r := NewBatch(); got < int(s.Packets); got += len(r.Packets) {
		if err := b.Read(r); err != nil {
			t.Fatal(err)
		}
	}
	a.Write(w)
	if s := a.Stats(); s.Packets != (pipeDepth+1)*packet.MaxBatch {
		t.Errorf("%+v: an empty pipe takes packets again", s)
	}
}

func TestPipeClose(t *testing.T) {
	a, b := NewPipe()
	w, r := NewBatch(), NewBatch()
	w.Append(pkt.UDP(client4, server4, []byte("last words")))
	a.Write(w)
	done := make(chan error)
	go func() { done <- a.Read(NewBatch()) }() // nothing comes
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read on a closed end: %v, want os.ErrClosed", err)
	}
	if err := b.Read(r); err != nil || len(r.Packets) != 1 {
		t.Errorf("what was on its way: %v, %d packets, want 1", err, len(r.Packets))
	}
	if err := b.Read(r); !errors.Is(err, os.ErrClosed) {
		t.Errorf("then: %v, want os.ErrClosed", err)
	}
	b.Write(w)
	if s := b.Stats(); s.Dropped != 1 {
		t.Errorf("%+v: what is written towards a closed end is dropped and counted", s)
	}
	b.Close()
}
