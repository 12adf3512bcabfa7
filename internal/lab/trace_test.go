package lab

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"github.com/gopacket/gopacket/pcapgo"
)

// TestTraceTellsWhatHappened: the printed sequence shows every hop, loss and
// refusal, and the capture can be read again.
func TestTraceTellsWhatHappened(t *testing.T) {
	w := newWorld(t)
	w.server.Echo()
	ping(w.t[0], w.server, 4000)
	w.t[0].Send(pkt.TCP(w.t[0].At(6, 4000), w.server.At(6, 80), packet.ACK, 1, 2, nil))
	w.t[0].Recv()
	w.Wire.Set("host-1", "egress-1", Weather{Loss: 1})
	w.t[0].Send(pkt.UDP(w.t[0].V4(4000), w.server.V4(7), nil))
	w.Eventually("it is lost", func() bool {
		var b strings.Builder
		w.Trace.Print(&b, 1000)
		return strings.Contains(b.String(), "[lost]")
	})
	w.noteDrops()

	var b strings.Builder
	w.Trace.Print(&b, 1000)
	for _, want := range []string{"t1 out", "host-1>egress-1", "db in", "egress-1>host-1", "t1 in", "[refused 1: no-flow]", "tcp R seq 2"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the trace does not tell %q", want)
		}
	}
	var file bytes.Buffer
	if err := w.Trace.WriteCapture(&file); err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(&file, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	packets, hops := 0, make(map[int]bool)
	for {
		_, ci, err := r.ReadPacketData()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packets++
		hops[ci.InterfaceIndex] = true
	}
	if packets < 12 || len(hops) != 6 {
		t.Errorf("the capture has %d packets of %d hops, want at least 12 of 6", packets, len(hops))
	}
}

// TestWireIsTheSameInEveryRun: weather is decided by the seed.
func TestWireIsTheSameInEveryRun(t *testing.T) {
	fate := func() string {
		w := newWorld(t)
		w.Wire.Set("host-1", "egress-1", Weather{Loss: 0.3, Duplicate: 0.3})
		for i := range 64 {
			w.t[0].Send(pkt.UDP(w.t[0].V4(4000), w.server.V4(53), []byte{byte(i)}))
		}
		w.Wire.Set("host-1", "egress-1", Weather{Loss: 0.3, Duplicate: 0.3})
		w.Eventually("all passed the wire", func() bool { return len(atHop(w.Trace, "t1 out")) == 64 && notes(w.Trace, "host-1>egress-1") >= 64 })
		var b strings.Builder
		for _, e := range atHop(w.Trace, "host-1>egress-1") {
			b.WriteString(e.note + ",")
		}
		return b.String()
	}
	if a, b := fate(), fate(); a != b || !strings.Contains(a, "lost") || !strings.Contains(a, "doubled") {
		t.Errorf("one run: %s\nanother: %s", a, b)
	}
}

func atHop(tr *Trace, hop string) (out []event) {
	for _, e := range tr.all() {
		if e.hop == hop {
			out = append(out, e)
		}
	}
	return out
}

// notes counts the packets at a hop, doubles not included.
func notes(tr *Trace, hop string) (n int) {
	for _, e := range atHop(tr, hop) {
		if e.note != "doubled" {
			n++
		}
	}
	return n
}
