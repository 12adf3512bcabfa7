package engine

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// one is a batch with one packet that can be sent again and again: the path
// rewrites packets in place.
type one struct {
	batch *packet.Batch
	data  []byte
	port  uint32
	peer  uint32
}

func newOne(data []byte, port, peer uint32) *one {
	return &one{packet.NewBatch(), data, port, peer}
}

func (o *one) fresh() *packet.Batch {
	o.batch.Reset()
	pk := o.batch.Append(o.data)
	pk.Port, pk.Peer = o.port, o.peer
	return o.batch
}

// TestNoAllocs runs the functions that the workers run, over both families,
// three protocols, and new, established and denied flows: not one allocation.
func TestNoAllocs(t *testing.T) {
	for _, f := range families() {
		allowed := func(sport uint16) map[string][]byte {
			return map[string][]byte{
				"tcp":  pkt.TCP(ap(f.task, sport), ap(f.server, 80), packet.SYN, 1, 0, nil),
				"udp":  pkt.UDP(ap(f.task, sport), ap(f.server, 53), []byte("x")),
				"icmp": pkt.Echo(f.task, f.server, sport, 1, pkt.Request, nil),
			}
		}
		for _, kind := range []string{"new", "established", "denied"} {
			for proto := range allowed(1) {
				t.Run(fmt.Sprintf("%s/%s/%s", f.name, proto, kind), func(t *testing.T) {
					rules := any4and6()
					if kind == "denied" {
						rules = []api.Rule{}
					}
					r := newRig(t)
					snap := snapshotFor(t, rules...)
					if err := r.egress.Apply(snap); err != nil {
						t.Fatal(err)
					}
					hv, ev := r.host.host.Load(), r.egress.egress.Load()
					o := newOne(allowed(4000)[proto], taskPort, 0)
					e := newOne(o.data, 0, hostPeer)
					check := func(hop string, f func()) {
						t.Helper()
						f()
						if n := testing.AllocsPerRun(200, f); n != 0 {
							t.Errorf("%s allocates %.1f times a packet", hop, n)
						}
					}
					if kind == "new" {
						// Another source port each time makes every packet a first one.
						sport := uint16(5000)
						step := func(o *one) *packet.Batch {
							b := o.fresh()
							sport++
							renumber(b.Packets[0].Data, f, proto, sport)
							return b
						}
						check("host outbound", func() { r.hostW.hostOutbound(hv, step(o)) })
						check("endpoint outbound", func() { r.out.egressOutbound(ev, step(e)) })
						if n := r.slot().table.Len(); n < 200 {
							t.Fatalf("only %d flows were made: these were not first packets", n)
						}
						return
					}
					check("host outbound", func() { r.hostW.hostOutbound(hv, o.fresh()) })
					check("endpoint outbound", func() { r.out.egressOutbound(ev, e.fresh()) })
					if kind == "denied" {
						return
					}
					b := e.fresh()
					r.out.egressOutbound(ev, b)
					answer := answerOf(t, f, b.Packets[0].Data)
					i := newOne(answer, subnetPort, 0)
					check("endpoint inbound", func() { r.in.egressInbound(ev, i.fresh()) })
					b = i.fresh()
					r.in.egressInbound(ev, b)
					if len(b.Packets[0].Data) == 0 {
						t.Fatal("the answer does not pass")
					}
					h := newOne(append([]byte(nil), b.Packets[0].Data...), 0, 0)
					check("host inbound", func() { r.back.hostInbound(hv, h.fresh()) })
				})
			}
		}
	}
}

// renumber gives a first packet another source port, or an echo request
// another identifier, and mends its checksum.
func renumber(data []byte, f family, proto string, sport uint16) {
	l4 := 20
	if f.name == "v6" {
		l4 = 40
	}
	at, sum := l4, l4+16
	switch proto {
	case "udp":
		sum = l4 + 6
	case "icmp":
		at, sum = l4+4, l4+2
	}
	before := binary.BigEndian.Uint16(data[at:])
	binary.BigEndian.PutUint16(data[at:], sport)
	binary.BigEndian.PutUint16(data[sum:], packet.Update16(binary.BigEndian.Uint16(data[sum:]), before, sport))
}

// answerOf is what the server answers to a packet that left.
func answerOf(t *testing.T, f family, sent []byte) []byte {
	p := parse(t, sent)
	switch p.Proto {
	case packet.ProtoTCP:
		return pkt.TCP(ap(f.server, p.DstPort), ap(f.outside, p.SrcPort), packet.SYN|packet.ACK, 7, p.Seq+1, nil)
	case packet.ProtoUDP:
		return pkt.UDP(ap(f.server, p.DstPort), ap(f.outside, p.SrcPort), nil)
	}
	return pkt.Echo(f.server, f.outside, p.SrcPort, 1, pkt.Reply, nil)
}
