package nat

import (
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

var bulk = flowtable.Config{MaxFlows: 1 << 18, MaxFlowsPerTask: 1 << 17}

// fill admits the flows of n sockets of one task, from inner port first on, by
// changing the parsed packet p. It returns how many were let in and the first
// refusal.
func (w *world) fill(p *packet.Parsed, task uint32, first, n int) (in int, last packet.Reason) {
	var s flowtable.Segment
	flowtable.SegmentOf(p, &s)
	for i := range n {
		p.SrcPort = uint16(first + i)
		_, r := w.m.Admit(p, &s, Meta{Task: task}, start)
		if r != packet.OK {
			return in, r
		}
		in++
	}
	return in, packet.OK
}

func setTask(p *packet.Parsed, i int) { p.Src = packet.AddrFrom(innerAddr(i)) }

// TestU1_SamePortForEveryDestination: a socket keeps its own port wherever it
// goes, as long as it is free there; and again when the flow is made anew.
func TestU1_SamePortForEveryDestination(t *testing.T) {
	for _, f := range families {
		w := newWorld(t, flowtable.Config{}, Config{})
		ref, port := w.mustAdmit(pkt.UDP(at(f.task, 5000), at(f.server, 1), nil), 1)
		for i := range 1000 {
			if _, got := w.mustAdmit(pkt.UDP(at(f.task, 5000), at(f.server, uint16(i+2)), nil), 1); got != port {
				t.Fatalf("%s: port %d for destination %d, %d for the first", f.name, got, i, port)
			}
		}
		if !w.ft.Remove(ref) {
			t.Fatal("flow was not there")
		}
		if _, got := w.mustAdmit(pkt.UDP(at(f.task, 5000), at(f.server, 1), nil), 1); got != port {
			t.Errorf("%s: port %d after the flow was made anew, %d before", f.name, got, port)
		}
		// Another process with the same secret chooses the same; another secret
		// another one; the other protocols and tasks have ports of their own.
		again := newWorld(t, flowtable.Config{}, Config{})
		if _, got := again.mustAdmit(pkt.UDP(at(f.task, 5000), at(f.server, 9), nil), 8); got != port {
			t.Errorf("%s: another process gives port %d, want %d", f.name, got, port)
		}
		other := newWorld(t, flowtable.Config{}, Config{Secret: [32]byte{5}})
		if _, got := other.mustAdmit(pkt.UDP(at(f.task, 5000), at(f.server, 1), nil), 1); got == port {
			t.Errorf("%s: another secret gives the same port %d", f.name, got)
		}
		if _, got := w.mustAdmit(pkt.TCP(at(f.task, 5000), at(f.server, 1), packet.SYN, 1, 0, nil), 1); got == port {
			t.Errorf("%s: TCP has UDP's port %d", f.name, got)
		}
		if _, got := w.mustAdmit(pkt.Echo(f.task, f.server, 5000, 1, pkt.Request, nil), 1); got == port || got < FirstPort {
			t.Errorf("%s: echo identifier %d", f.name, got)
		}
	}
}

// checkTable checks that no two flows share an outside tuple and that nobody
// has a port that is reserved or out of range.
func (w *world) checkTable() {
	w.t.Helper()
	seen := make(map[flowtable.Tuple]bool, w.ft.Len())
	w.ft.All(func(_ flowtable.Ref, e *flowtable.Entry) bool {
		_, port := e.Outside()
		if port < FirstPort || w.m.reserved.has(uint32(port-FirstPort)) {
			w.t.Fatalf("port %d was given out", port)
		}
		k := e.Reply()
		if seen[k] {
			w.t.Fatalf("two flows share %+v", k)
		}
		seen[k] = true
		return true
	})
}

func (w *world) removeAll() {
	w.t.Helper()
	var refs []flowtable.Ref
	w.ft.All(func(r flowtable.Ref, _ *flowtable.Entry) bool {
		refs = append(refs, r)
		return true
	})
	for _, r := range refs {
		w.ft.Remove(r)
	}
}

// checkEmpty checks that a mapper without flows remembers nothing.
func (w *world) checkEmpty() {
	w.t.Helper()
	st := w.m.Stats()
	if st.Destinations != 0 || st.Hot != 0 || st.Pinned != 0 {
		w.t.Errorf("all flows are gone, but %+v", st)
	}
	for i := range w.m.shards {
		if n := w.m.shards[i].shares.used; n != 0 {
			w.t.Errorf("shard %d still counts %d tasks", i, n)
		}
	}
	if st.Bytes > 4<<20 {
		w.t.Errorf("an empty mapper has %d bytes", st.Bytes)
	}
}

// TestL1_LimitsChangeLive: a new limit holds for the next flow and ends none.
func TestL1_LimitsChangeLive(t *testing.T) {
	w := newWorld(t, bulk, Config{Limits: Limits{PerTask: 10, Minimum: 5, Reserve: 100}})
	p := udpFlow(t, families[0])
	if in, r := w.fill(p, 1, 0, 20); in != 10 || r != packet.TaskPortLimit {
		t.Errorf("%d flows, then %v; want 10, then the cap", in, r)
	}
	if err := w.m.SetLimits(Limits{PerTask: 15}); err != nil {
		t.Fatal(err)
	}
	if in, r := w.fill(p, 1, 10, 20); in != 5 || r != packet.TaskPortLimit {
		t.Errorf("%d more flows, then %v; want 5, then the cap", in, r)
	}
	if err := w.m.SetLimits(Limits{PerTask: 3, Minimum: -1}); err != nil {
		t.Fatal(err)
	}
	if w.ft.Len() != 15 {
		t.Errorf("a lower limit ended flows: %d left", w.ft.Len())
	}
	for _, bad := range []Limits{{PerTask: -1}, {Reserve: portCount}, {PerTask: 5, Minimum: 6}} {
		if err := w.m.SetLimits(bad); err == nil || !strings.HasPrefix(err.Error(), "nat: ") {
			t.Errorf("SetLimits(%+v) = %v", bad, err)
		}
	}
}

// TestU4_ReservedPortsMoveNobodyElse: ports of the machine are never given out,
// and a socket whose own port is not one of them does not notice.
func TestU4_ReservedPortsMoveNobodyElse(t *testing.T) {
	plain := newWorld(t, bulk, Config{})
	some := newWorld(t, bulk, Config{Reserved: []PortRange{{1, 2000}, {51820, 52000}}})
	moved := 0
	for i := range 20_000 {
		b := pkt.UDP(at(task4, uint16(i)), at(server4, uint16(1+i%4)), nil)
		_, p := plain.mustAdmit(b, 1)
		_, q := some.mustAdmit(b, 1)
		reserved := func(p uint16) bool { return p <= 2000 || p >= 51820 && p <= 52000 }
		if reserved(q) {
			t.Fatalf("reserved port %d was given out", q)
		}
		if q != p && !reserved(p) {
			moved++ // its port may have been taken by one that had to move
		}
	}
	if moved > 250 {
		t.Errorf("%d of 20,000 sockets have another port because others were reserved", moved)
	}
	some.checkTable()
}

// TestT20_OneMappingForOneFlow: two packets of one new flow on several cores
// at the same moment yield one mapping, and nothing stays counted twice.
func TestT20_OneMappingForOneFlow(t *testing.T) {
	for _, mapping := range []Mapping{PerDestination, Independent} {
		w := newWorld(t, bulk, Config{UDP: mapping})
		for i := range 300 {
			b := pkt.UDP(at(task4, uint16(i)), at(server4, 53), nil)
			var wg sync.WaitGroup
			refs := make([]flowtable.Ref, 4)
			for g := range refs {
				p := parse(t, b)
				wg.Add(1)
				go func() {
					defer wg.Done()
					var s flowtable.Segment
					flowtable.SegmentOf(p, &s)
					ref, r := w.m.Admit(p, &s, Meta{Task: 1}, start)
					if r != packet.OK && r != packet.FlowExists {
						t.Errorf("refused: %v", r)
					}
					refs[g] = ref
				}()
			}
			wg.Wait()
			for _, r := range refs {
				if r != refs[0] || r == 0 {
					t.Fatalf("one flow has the entries %v", refs)
				}
			}
		}
		if w.ft.Len() != 300 {
			t.Errorf("%d flows, want 300", w.ft.Len())
		}
		if taken, mine := w.m.Ports(protoUDP, packet.AddrFrom(server4), 53, 1); mapping == PerDestination && (taken != 300 || mine != 300) {
			t.Errorf("%d ports taken, %d by the task, want 300", taken, mine)
		}
		w.removeAll()
		w.checkEmpty()
	}
}

// TestReleased_UnderChurn hammers two destinations from several goroutines and
// then checks that every count is what the table says.
func TestReleased_UnderChurn(t *testing.T) {
	for _, mapping := range []Mapping{PerDestination, Independent} {
		w := newWorld(t, bulk, Config{UDP: mapping})
		var wg sync.WaitGroup
		for g := range 4 {
			p := parse(t, pkt.UDP(at(innerAddr(g), 1), at(server4, 53), nil))
			wg.Add(1)
			go func() {
				defer wg.Done()
				var s flowtable.Segment
				flowtable.SegmentOf(p, &s)
				var live []flowtable.Ref
				h := uint64(g)
				for range scaled(8000) {
					h = mix(h + 1)
					p.SrcPort, p.DstPort = uint16(h), uint16(53+h>>16&1)
					ref, r := w.m.Admit(p, &s, Meta{Task: uint32(g)}, start)
					switch r {
					case packet.OK:
						live = append(live, ref)
					case packet.FlowExists:
					default:
						t.Errorf("refused: %v", r)
					}
					if len(live) > 0 && h>>32%8 < 4 {
						i := int(h>>40) % len(live)
						w.ft.Remove(live[i])
						live[i] = live[len(live)-1]
						live = live[:len(live)-1]
					}
				}
			}()
		}
		wg.Wait()
		w.checkTable()
		model := map[[2]uint32]int{}
		w.ft.All(func(_ flowtable.Ref, e *flowtable.Entry) bool {
			model[[2]uint32{uint32(e.Inner().DstPort), e.Task()}]++
			return true
		})
		for k, n := range model {
			if _, got := w.m.Ports(protoUDP, packet.AddrFrom(server4), uint16(k[0]), k[1]); mapping == PerDestination && got != n {
				t.Errorf("destination %d, task %d: %d counted, %d in the table", k[0], k[1], got, n)
			}
		}
		w.removeAll()
		w.checkEmpty()
	}
}

// TestL4_RefusalsLeaveNothing: every way Admit can say no, and nothing stays
// counted.
func TestL4_RefusalsLeaveNothing(t *testing.T) {
	w := newWorld(t, flowtable.Config{MaxFlows: 64, MaxFlowsPerTask: 20}, Config{V4: out4})
	w.fill(udpFlow(t, families[0]), 1, 0, 20)
	before := w.m.Stats()
	fragment := pkt.Fragments(pkt.Opts{MayFragment: true}.UDP(at(task4, 1), at(server4, 2), make([]byte, 900)), 300, 1)[1]
	for _, c := range []struct {
		name string
		data []byte
		task uint32
		want packet.Reason
	}{
		{"task's flow cap", pkt.UDP(at(task4, 4000), at(server4, 9), nil), 1, packet.TaskFlowLimit},
		{"no IPv6 address", pkt.UDP(at(task6, 1), at(server6, 2), nil), 2, packet.NoRoute},
		{"hairpin", pkt.UDP(at(task4, 1), at(out4, 2), nil), 2, packet.Hairpin},
		{"later fragment", fragment, 2, packet.FragmentRefused},
		{"echo reply", pkt.Echo(task4, server4, 1, 1, pkt.Reply, nil), 2, packet.UnsupportedProtocol},
		{"error", pkt.ICMP(task4, server4, 3, 1, 0, make([]byte, 28)), 2, packet.UnsupportedProtocol},
		{"mid-stream", pkt.TCP(at(task4, 1), at(server4, 2), packet.ACK, 1, 1, nil), 2, packet.NoFlow},
	} {
		if ref, got := w.admit(c.data, c.task); got != c.want || ref != 0 {
			t.Errorf("%s: %v with entry %#x, want %v", c.name, got, ref, c.want)
		}
	}
	after := w.m.Stats()
	before.Bytes, after.Bytes = 0, 0
	if after != before {
		t.Errorf("refusals left %+v, before %+v", after, before)
	}
	for i := range 44 {
		w.mustAdmit(pkt.UDP(at(task4, uint16(i)), at(server4, 99), nil), uint32(10+i))
	}
	if _, r := w.admit(pkt.UDP(at(task4, 9000), at(server4, 99), nil), 5); r != packet.TableFull {
		t.Errorf("65th flow of 64: %v", r)
	}
	w.removeAll()
	w.checkEmpty()
}

// TestU14_InnerPlanMayEqualTheSubnets: a task may have the very address of the
// server it talks to somebody else at.
func TestU14_InnerPlanMayEqualTheSubnets(t *testing.T) {
	w := newWorld(t, bulk, Config{})
	other := netip.MustParseAddr("10.0.1.21")
	refA, a := w.mustAdmit(pkt.UDP(at(server4, 53), at(other, 53), nil), 1)
	refB, b := w.mustAdmit(pkt.UDP(at(other, 53), at(server4, 53), nil), 2)
	for _, c := range []struct {
		from netip.Addr
		port uint16
		want flowtable.Ref
	}{{other, a, refA}, {server4, b, refB}} {
		k := flowtable.TupleOf(parse(t, pkt.UDP(at(c.from, 53), at(out4, c.port), nil)))
		if ref, dir := w.ft.Lookup(&k); ref != c.want || dir != flowtable.Inbound {
			t.Errorf("answer from %v finds %#x %v, want %#x", c.from, ref, dir, c.want)
		}
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	w := newWorld(t, flowtable.Config{MaxFlows: 16}, Config{})
	good := Config{Table: w.ft, Secret: [32]byte{1}, V4: out4, V6: out6}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"Table":                  func(c *Config) { c.Table = nil },
		"Secret":                 func(c *Config) { c.Secret = [32]byte{} },
		"an outside address":     func(c *Config) { c.V4, c.V6 = netip.Addr{}, netip.Addr{} },
		"not an IPv4 address":    func(c *Config) { c.V4 = out6 },
		"not an IPv6 address":    func(c *Config) { c.V6 = out4 },
		"unknown mapping":        func(c *Config) { c.UDP = 7 },
		"8010-8000":              func(c *Config) { c.Reserved = []PortRange{{8010, 8000}} },
		"all ports are reserved": func(c *Config) { c.Reserved = []PortRange{{0, 65535}} },
		"PerTask":                func(c *Config) { c.Limits.PerTask = -3 },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error that names %q, got %v", name, err)
		}
	}
}
