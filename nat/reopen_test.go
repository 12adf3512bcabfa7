package nat

import (
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// closeByClient takes a flow from its SYN to TIME_WAIT.
func (w *world) closeByClient(ref flowtable.Ref) {
	w.t.Helper()
	for _, s := range []struct {
		d        flowtable.Direction
		flags    uint8
		seq, ack uint32
	}{
		{flowtable.Inbound, packet.SYN | packet.ACK, 9000, 1001},
		{flowtable.Outbound, packet.ACK, 1001, 9001},
		{flowtable.Outbound, packet.FIN | packet.ACK, 1001, 9001},
		{flowtable.Inbound, packet.FIN | packet.ACK, 9001, 1002},
		{flowtable.Outbound, packet.ACK, 1002, 9002},
	} {
		seg := flowtable.Segment{Flags: s.flags, Seq: s.seq, Ack: s.ack, Window: 65535, Wire: 1, Bytes: 40}
		if r := w.ft.Observe(ref, s.d, &seg, start); r != packet.OK {
			w.t.Fatalf("closing a flow: %v", r)
		}
	}
	if st := w.ft.Entry(ref).State(); !st.Finished() {
		w.t.Fatalf("state %v after both FINs", st)
	}
}

// TestT13_ReopenKeepsThePort: a socket that opens a connection again while its
// last one is in TIME_WAIT has the same outside port, below and above the
// number of flows from which on taken ports are written down, and even where it
// has all ports that it may have.
func TestT13_ReopenKeepsThePort(t *testing.T) {
	for _, n := range []int{1, 2 * hotFrom} {
		for _, f := range families {
			w := newWorld(t, bulk, Config{Limits: Limits{PerTask: n}})
			syn := func(i int, seq uint32) []byte {
				return pkt.TCP(at(f.task, uint16(i)), at(f.server, 5432), packet.SYN, seq, 0, nil)
			}
			ports := map[int]uint16{}
			refs := map[int]flowtable.Ref{}
			for i := range n {
				refs[i], ports[i] = w.mustAdmit(syn(i, 1000), 1)
			}
			if _, r := w.admit(syn(n, 1000), 1); r != packet.TaskPortLimit {
				t.Fatalf("%s: flow %d: %v", f.name, n, r)
			}
			for i := range n {
				w.closeByClient(refs[i])
				ref, port := w.mustAdmit(syn(i, 5000), 1)
				if port != ports[i] || ref == refs[i] {
					t.Fatalf("%s: opened again: port %d, was %d", f.name, port, ports[i])
				}
			}
			if taken, mine := w.m.Ports(protoTCP, packet.AddrFrom(f.server), 5432, 1); taken != n || mine != n || w.ft.Len() != n {
				t.Errorf("%s: %d ports taken, %d by the task, %d flows; want %d", f.name, taken, mine, w.ft.Len(), n)
			}
			w.checkTable()
			// A held port is nobody else's. Task 2 opens every inner port to the
			// same destination while task 1's flows are there, in any state.
			if err := w.m.SetLimits(Limits{}); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				other := pkt.TCP(at(f.router, uint16(i)), at(f.server, 5432), packet.SYN, 1, 0, nil)
				w.mustAdmit(other, 2)
			}
			w.checkTable()
			w.removeAll()
			w.checkEmpty()
		}
	}
}

// TestL3_HeldPortIsNotReused: as long as the table holds the tuple of a
// finished flow, another task gets another port, whatever its own port is.
func TestL3_HeldPortIsNotReused(t *testing.T) {
	w := newWorld(t, bulk, Config{})
	ref, port := w.mustAdmit(pkt.TCP(at(task4, 40000), at(server4, 5432), packet.SYN, 1000, 0, nil), 1)
	w.closeByClient(ref)
	// Find an inner socket of another task whose own port is the same.
	other := parse(t, pkt.TCP(at(task4, 1), at(server4, 5432), packet.SYN, 1, 0, nil))
	for i := 0; ; i++ {
		setTask(other, i>>16)
		other.SrcPort = uint16(i)
		k := flowtable.TupleOf(other)
		if w := newWalk(w.m.socketKey(&k), 0); w.at == uint32(port-FirstPort) && k.Src != packet.AddrFrom(task4) {
			break
		}
	}
	var s flowtable.Segment
	flowtable.SegmentOf(other, &s)
	got, r := w.m.Admit(other, &s, Meta{Task: 2}, start)
	if r != packet.OK {
		t.Fatalf("refused: %v", r)
	}
	if _, p := w.ft.Entry(got).Outside(); p == port {
		t.Errorf("port %d is in its hold and was given to another task", port)
	}
	w.ft.Remove(got)
	// After the hold it is free again.
	if r := w.ft.Sweep(start.Add(w.ft.Timeouts().HoldClient*2), bulk.MaxFlows); r != 1 {
		t.Fatalf("%d flows expired, want 1", r)
	}
	got, r = w.m.Admit(other, &s, Meta{Task: 2}, start)
	if r != packet.OK {
		t.Fatalf("refused: %v", r)
	}
	if _, p := w.ft.Entry(got).Outside(); p != port {
		t.Errorf("port %d after the hold, want the socket's own %d", p, port)
	}
}

// TestZ16_AddressOfAnotherTask: a tuple that still belongs to the address's
// former task is not handed to the new one.
func TestZ16_AddressOfAnotherTask(t *testing.T) {
	for _, mapping := range []Mapping{PerDestination, Independent} {
		w := newWorld(t, bulk, Config{UDP: mapping})
		b := pkt.UDP(at(task4, 40000), at(server4, 5432), nil)
		ref, _ := w.mustAdmit(b, 1)
		if got, r := w.admit(b, 2); r != packet.TupleTaken || got != 0 {
			t.Errorf("the new task got entry %#x, %v", got, r)
		}
		if got, r := w.admit(b, 1); r != packet.FlowExists || got != ref {
			t.Errorf("the owner got entry %#x, %v; want %#x", got, r, ref)
		}
		w.ft.Remove(ref)
		if _, r := w.admit(b, 2); r != packet.OK {
			t.Errorf("after the flow's end: %v", r)
		}
		w.removeAll()
		w.checkEmpty()
	}
}
