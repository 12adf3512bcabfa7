package engine

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// family is the addresses of one IP version.
type family struct {
	name                         string
	task, other, server, outside netip.Addr
}

func families() []family {
	return []family{
		{"v4", task4, other4, server4, outside4},
		{"v6", task6, other6, server6, outside6},
	}
}

// TestS27_SourceAtTheDestinationIsTheEndpoint: what leaves carries the shared
// address, what comes back reaches the task that asked, byte for byte.
func TestS27_SourceAtTheDestinationIsTheEndpoint(t *testing.T) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			r := newRig(t)
			o := r.task(taskPort, pkt.UDP(ap(f.task, 4000), ap(f.server, 53), []byte("question")))
			if o.reason != packet.OK {
				t.Fatalf("first datagram refused at %s: %v", o.at, o.reason)
			}
			p := parse(t, o.data)
			if got := packet.ToNetip(p.Src); got != f.outside {
				t.Fatalf("the server sees %v, want the endpoint's %v", got, f.outside)
			}
			if o.port != subnetPort {
				t.Fatalf("left by port %d, want the subnet's %d", o.port, subnetPort)
			}
			if err := pkt.Check(o.data); err != nil {
				t.Fatal(err)
			}
			back := r.subnet(pkt.UDP(ap(f.server, 53), ap(f.outside, p.SrcPort), []byte("answer")))
			if back.reason != packet.OK || back.port != taskPort {
				t.Fatalf("answer: %v at port %d, want ok at %d", back.reason, back.port, taskPort)
			}
			q := parse(t, back.data)
			if packet.ToNetip(q.Dst) != f.task || q.DstPort != 4000 || !bytes.HasSuffix(back.data, []byte("answer")) {
				t.Fatalf("the task got %v:%d", packet.ToNetip(q.Dst), q.DstPort)
			}
			if err := pkt.Check(back.data); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestS22_UnsolicitedInboundIsDropped: nothing from the subnet passes without
// a flow, nothing is answered, and no state is made.
func TestS22_UnsolicitedInboundIsDropped(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		for name, data := range map[string][]byte{
			"syn":  pkt.TCP(ap(f.server, 4000), ap(f.outside, 22), packet.SYN, 1, 0, nil),
			"ack":  pkt.TCP(ap(f.server, 4000), ap(f.outside, 22), packet.ACK, 1, 1, nil),
			"udp":  pkt.UDP(ap(f.server, 53), ap(f.outside, 4000), []byte("x")),
			"echo": pkt.Echo(f.server, f.outside, 1, 1, pkt.Request, nil),
		} {
			o := r.subnet(data)
			if o.reason != packet.Unsolicited {
				t.Errorf("%s %s: %v, want unsolicited", f.name, name, o.reason)
			}
			if o.reply != nil {
				t.Errorf("%s %s was answered: the endpoint shows that it is there", f.name, name)
			}
		}
		if n := r.slot().table.Len(); n != 0 {
			t.Errorf("%s: %d flows made by strangers", f.name, n)
		}
	}
}

// TestU9_OnlyTheExactRemoteMayAnswer: another port or address of the subnet
// does not reach the task (J2).
func TestU9_OnlyTheExactRemoteMayAnswer(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		o := r.task(taskPort, pkt.UDP(ap(f.task, 4000), ap(f.server, 53), nil))
		port := parse(t, o.data).SrcPort
		stranger := f.server.Next()
		for _, from := range []netip.AddrPort{ap(f.server, 54), ap(stranger, 53)} {
			if o := r.subnet(pkt.UDP(from, ap(f.outside, port), nil)); o.reason != packet.Unsolicited {
				t.Errorf("%v answers for %v: %v", from, f.server, o.reason)
			}
		}
	}
}

// TestZ1_SpoofedSourcesAreDropped on the host, and again at the endpoint,
// which trusts no host.
func TestZ1_SpoofedSourcesAreDropped(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		for _, src := range []netip.Addr{f.other, f.outside, f.server} {
			o := r.task(taskPort, pkt.UDP(ap(src, 4000), ap(f.server.Next(), 53), nil))
			if o.reason != packet.SpoofedSource || o.at != "host" {
				t.Errorf("source %v passes as task-1: %v at %s", src, o.reason, o.at)
			}
			if o.reply != nil {
				t.Errorf("source %v was answered", src)
			}
		}
		data := pkt.UDP(ap(f.task, 4000), ap(f.server, 53), nil)
		if o := r.tunnel(hostPeer+1, packet.Packet{Data: data}); o.reason != packet.SpoofedSource {
			t.Errorf("a peer without the prefix passes: %v", o.reason)
		}
		data = pkt.UDP(ap(f.server, 4000), ap(f.server.Next(), 53), nil)
		if o := r.tunnel(hostPeer, packet.Packet{Data: data}); o.reason != packet.NotDelegated {
			t.Errorf("a source outside every prefix passes: %v", o.reason)
		}
	}
}

// TestZ15_TasksNeverReachEachOther: neither by inner address, whatever the
// rules allow, nor by the shared address (U10, J3).
func TestZ15_TasksNeverReachEachOther(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.other, 80), packet.SYN, 1, 0, nil))
		if o.reason != packet.TaskToTask || o.at != "endpoint" {
			t.Errorf("%s: task to task: %v at %s", f.name, o.reason, o.at)
		}
		if o.reply == nil {
			t.Errorf("%s: the task is not told", f.name)
		}
		o = r.task(taskPort, pkt.UDP(ap(f.task, 4000), ap(f.outside, 4000), nil))
		if o.reason != packet.Hairpin {
			t.Errorf("%s: hairpin: %v", f.name, o.reason)
		}
	}
}

// TestS13_DeniedDestinationIsRefusedAtOnce: no rule, no packet, and the task
// is told so by an ICMP error about its own packet (J5).
func TestS13_DeniedDestinationIsRefusedAtOnce(t *testing.T) {
	for _, f := range families() {
		r := newRig(t, api.Rule{Protocol: "tcp", FromPort: 5432, ToPort: 5432, CIDR: netip.PrefixFrom(f.server, f.server.BitLen())})
		if o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 5432), packet.SYN, 1, 0, nil)); o.reason != packet.OK {
			t.Fatalf("%s: the allowed port is refused: %v", f.name, o.reason)
		}
		o := r.task(taskPort, pkt.TCP(ap(f.task, 4001), ap(f.server, 5433), packet.SYN, 1, 0, nil))
		if o.reason != packet.DeniedByPolicy {
			t.Fatalf("%s: %v, want denied-by-policy", f.name, o.reason)
		}
		if o.reply == nil {
			t.Fatalf("%s: nobody tells the task", f.name)
		}
		p := parse(t, o.reply)
		if !p.IsICMPError() || packet.ToNetip(p.Dst) != f.task {
			t.Fatalf("%s: answer is protocol %d to %v", f.name, p.Proto, packet.ToNetip(p.Dst))
		}
		if err := pkt.Check(o.reply); err != nil {
			t.Fatal(err)
		}
	}
}

// handshake opens a TCP flow and returns the outside port.
func (r *rig) handshake(f family, sport uint16) uint16 {
	r.t.Helper()
	o := r.task(taskPort, pkt.TCP(ap(f.task, sport), ap(f.server, 80), packet.SYN, 1000, 0, nil))
	if o.reason != packet.OK {
		r.t.Fatalf("SYN refused: %v at %s", o.reason, o.at)
	}
	port := parse(r.t, o.data).SrcPort
	if o := r.subnet(pkt.TCP(ap(f.server, 80), ap(f.outside, port), packet.SYN|packet.ACK, 5000, 1001, nil)); o.reason != packet.OK {
		r.t.Fatalf("SYN-ACK refused: %v at %s", o.reason, o.at)
	}
	if o := r.task(taskPort, pkt.TCP(ap(f.task, sport), ap(f.server, 80), packet.ACK, 1001, 5001, nil)); o.reason != packet.OK {
		r.t.Fatalf("ACK refused: %v at %s", o.reason, o.at)
	}
	return port
}

// TestT4_MidStreamSegmentIsReset: a segment without a flow makes no state; the
// task gets an acceptable RST, the subnet nothing.
func TestT4_MidStreamSegmentIsReset(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1000, 2000, []byte("late")))
		if o.reason != packet.NoFlow || o.reply == nil {
			t.Fatalf("%s: %v, reply %x", f.name, o.reason, o.reply)
		}
		p := parse(t, o.reply)
		if p.Flags&packet.RST == 0 || p.Seq != 2000 {
			t.Errorf("%s: flags %#x seq %d: the task's stack would ignore it", f.name, p.Flags, p.Seq)
		}
		if n := r.slot().table.Len(); n != 0 {
			t.Errorf("%s: an ACK opened a flow", f.name)
		}
	}
}

// TestT9_AfterIdleExpiryTheTaskGetsAReset.
func TestT9_AfterIdleExpiryTheTaskGetsAReset(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		r.handshake(f, 4000)
		r.clock.Advance(7440*time.Second - time.Second)
		if o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1001, 5001, nil)); o.reason != packet.OK {
			t.Fatalf("%s: ended before its time: %v", f.name, o.reason)
		}
		r.clock.Advance(7441 * time.Second)
		o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1001, 5001, nil))
		if o.reason != packet.FlowExpired || o.reply == nil || parse(t, o.reply).Flags&packet.RST == 0 {
			t.Fatalf("%s: %v, reply %x: the task would hang", f.name, o.reason, o.reply)
		}
	}
}

// TestZ8_BadChecksumNeverChangesState: a segment that the server ignores must
// not make the endpoint believe something else.
func TestZ8_BadChecksumNeverChangesState(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		r.handshake(f, 4000)
		rst := pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.RST|packet.ACK, 1001, 5001, nil)
		rst[len(rst)-4] ^= 0xff // the checksum is 16 bytes into the header of 20
		if o := r.task(taskPort, rst); o.reason != packet.BadChecksum {
			t.Fatalf("%s: %v, want bad-checksum", f.name, o.reason)
		}
		if o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK|packet.PSH, 1001, 5001, []byte("go on"))); o.reason != packet.OK {
			t.Fatalf("%s: the flow was ended by a segment nobody accepts: %v", f.name, o.reason)
		}
	}
}

// TestI4_ErrorAboutAFlowReachesItsTask: an error from the subnet quotes what
// the endpoint sent; the task must find its own packet in it.
func TestI4_ErrorAboutAFlowReachesItsTask(t *testing.T) {
	r := newRig(t)
	o := r.task(taskPort, pkt.UDP(ap(task4, 4000), ap(server4, 9), []byte("to nobody")))
	sent := bytes.Clone(o.data)
	back := r.subnet(pkt.ICMP(server4, outside4, 3, 3, 0, sent))
	if back.reason != packet.OK || back.port != taskPort {
		t.Fatalf("port unreachable: %v at %s", back.reason, back.at)
	}
	quoted := parse(t, back.data[28:])
	if packet.ToNetip(quoted.Src) != task4 || quoted.SrcPort != 4000 {
		t.Fatalf("the error quotes %v:%d, want the task's own packet", packet.ToNetip(quoted.Src), quoted.SrcPort)
	}
	// Of a flow that does not exist: nothing.
	stray := pkt.UDP(ap(outside4, 4001), ap(server4, 10), nil)
	if back := r.subnet(pkt.ICMP(server4, outside4, 3, 3, 0, stray)); back.reason != packet.Unsolicited {
		t.Fatalf("error about no flow: %v", back.reason)
	}
}

// TestE5_TTLFallsByOne at the endpoint, and a packet that is used up is told
// about, once, by the endpoint.
func TestE5_TTLFallsByOne(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		o := r.task(taskPort, pkt.Opts{TTL: 64}.UDP(ap(f.task, 4000), ap(f.server, 53), nil))
		if got := parse(t, o.data).TTL; got != 63 {
			t.Errorf("%s: TTL %d, want 63", f.name, got)
		}
		o = r.task(taskPort, pkt.Opts{TTL: 1}.UDP(ap(f.task, 4000), ap(f.server, 53), nil))
		if o.reason != packet.TTLExceeded || o.reply == nil {
			t.Errorf("%s: TTL 1: %v, reply %x", f.name, o.reason, o.reply)
		}
	}
}

// TestM5_SegmentSizeIsClamped on SYN and SYN-ACK.
func TestM5_SegmentSizeIsClamped(t *testing.T) {
	r := newRig(t)
	syn := pkt.Opts{TCPOptions: pkt.MSS(8960)}.TCP(ap(task4, 4000), ap(server4, 80), packet.SYN, 1, 0, nil)
	o := r.task(taskPort, syn)
	if got := o.data[len(o.data)-2:]; !bytes.Equal(got, []byte{1380 >> 8, 1380 & 0xff}) {
		t.Errorf("MSS %x, want 1380", got)
	}
	if err := pkt.Check(o.data); err != nil {
		t.Error(err)
	}
}

// TestG4_SuperPacketIsTranslatedAsOne: one lookup, one rewrite, counted as what
// it is on the wire.
func TestG4_SuperPacketIsTranslatedAsOne(t *testing.T) {
	for _, f := range families() {
		r := newRig(t)
		port := r.handshake(f, 4000)
		data := pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK|packet.PSH, 1001, 5001, make([]byte, 10*1200))
		before := r.slot().out.packets.Load()
		o := r.taskPacket(taskPort, pkt.Super(data, 1200))
		if o.reason != packet.OK {
			t.Fatalf("%s: %v at %s", f.name, o.reason, o.at)
		}
		if o.gso.Size != 1200 || !o.gso.Partial {
			t.Errorf("%s: offload state lost: %+v", f.name, o.gso)
		}
		if got := r.slot().out.packets.Load() - before; got != 10 {
			t.Errorf("%s: counted as %d packets, want 10", f.name, got)
		}
		p := new(packet.Parsed)
		if reason := p.Parse(&packet.Packet{Data: o.data, GSO: o.gso}); reason != packet.OK || p.SrcPort != port {
			t.Errorf("%s: %v, source port %d, want %d", f.name, reason, p.SrcPort, port)
		}
	}
}

// TestQ5_EmptyGroupDeniesAll.
func TestQ5_EmptyGroupDeniesAll(t *testing.T) {
	r := newRig(t, []api.Rule{}...)
	snap := snapshotFor(t)
	if err := r.egress.Apply(snap); err != nil {
		t.Fatal(err)
	}
	if o := r.task(taskPort, pkt.UDP(ap(task4, 1), ap(server4, 53), nil)); o.reason != packet.DeniedByPolicy {
		t.Fatalf("%v, want denied-by-policy", o.reason)
	}
}

// TestQ9_RuleChangeLeavesTrackedFlows: what was allowed goes on, what is new
// meets the new rules (J7).
func TestQ9_RuleChangeLeavesTrackedFlows(t *testing.T) {
	f := families()[0]
	r := newRig(t)
	r.handshake(f, 4000)
	snap := snapshotFor(t, api.Rule{Protocol: "udp", FromPort: 53, ToPort: 53, CIDR: netip.MustParsePrefix("0.0.0.0/0")})
	snap.Stamp.Revision = 2
	if err := r.egress.Apply(snap); err != nil {
		t.Fatal(err)
	}
	if o := r.task(taskPort, pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK, 1001, 5001, nil)); o.reason != packet.OK {
		t.Errorf("a tracked flow was cut: %v", o.reason)
	}
	if o := r.task(taskPort, pkt.TCP(ap(f.task, 4001), ap(f.server, 80), packet.SYN, 1, 0, nil)); o.reason != packet.DeniedByPolicy {
		t.Errorf("a new flow passes under the old rules: %v", o.reason)
	}
}

// TestTapSeesEveryHop: a question and its answer pass four places, and a
// refused packet shows its reason.
func TestTapSeesEveryHop(t *testing.T) {
	f := families()[0]
	r := newRig(t)
	var seen []string
	tap := func(h Hop, pk *Packet, why Reason) { seen = append(seen, h.String()+" "+why.String()) }
	r.host.SetTap(tap)
	r.egress.SetTap(tap)
	o := r.task(taskPort, pkt.UDP(ap(f.task, 4000), ap(f.server, 53), nil))
	r.subnet(pkt.UDP(ap(f.server, 53), ap(f.outside, parse(t, o.data).SrcPort), nil))
	r.subnet(pkt.UDP(ap(f.server, 54), ap(f.outside, 9), nil))
	r.host.SetTap(nil)
	r.egress.SetTap(nil)
	r.task(taskPort, pkt.UDP(ap(f.task, 4001), ap(f.server, 53), nil))
	want := []string{"host-outbound ok", "endpoint-outbound ok", "endpoint-inbound ok", "host-inbound ok", "endpoint-inbound unsolicited"}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
}
