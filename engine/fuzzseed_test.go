package engine

import (
	"bytes"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// outboundSeeds are packets of tasks, good and bad; own sends as task-1,
// stranger may not.
func outboundSeeds(own, stranger uint32) []input {
	var out []input
	add := func(data []byte) { out = append(out, input{data: data, from: own}) }
	for _, f := range families() {
		udp := pkt.UDP(ap(f.task, 4000), ap(f.server, 53), []byte("question"))
		tcp := pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.ACK|packet.PSH, 1001, 5001, make([]byte, 3000))
		add(udp)
		add(tcp)
		add(pkt.Opts{TCPOptions: pkt.MSS(8960)}.TCP(ap(f.task, 4001), ap(f.server, 80), packet.SYN, 1, 0, nil))
		add(pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.RST, 1001, 0, nil))
		add(pkt.TCP(ap(f.task, 4000), ap(f.server, 80), packet.FIN|packet.ACK, 1001, 5001, nil))
		add(pkt.TCP(ap(f.task, 4009), ap(f.server, 80), packet.ACK, 1001, 5001, []byte("late")))
		add(pkt.Echo(f.task, f.server, 7, 1, pkt.Request, []byte("ping")))
		add(pkt.Echo(f.task, f.server, 7, 1, pkt.Reply, nil))
		add(pkt.UDP(ap(f.task, 4000), ap(f.other, 53), nil))
		add(pkt.UDP(ap(f.task, 4000), ap(f.outside, 53), nil))
		add(pkt.UDP(ap(f.server, 4000), ap(f.server.Next(), 53), nil))
		add(pkt.Opts{TTL: 1}.UDP(ap(f.task, 4000), ap(f.server, 53), nil))
		add(pkt.Raw(f.task, f.server, 47, make([]byte, 8)))
		answer := pkt.UDP(ap(f.server, 53), ap(f.task, 4000), []byte("answer"))
		typ := uint8(3)
		if f.name == "v6" {
			typ = 1
		}
		add(pkt.ICMP(f.task, f.server, typ, 3, 0, answer))
		add(pkt.Fragments(pkt.Opts{MayFragment: true}.UDP(ap(f.task, 4000), ap(f.server, 53), make([]byte, 600)), 300, 1)[0])
		add(udp[:len(udp)-3])
		out = append(out, input{data: udp, from: stranger})
		for _, s := range []packet.Packet{pkt.Super(tcp, 1200), pkt.Super(udp, 3), pkt.Partial(tcp)} {
			out = append(out, input{data: s.Data, gso: s.GSO, from: own})
		}
	}
	return out
}

// inboundSeeds are packets of the subnet: answers, errors, and strangers'.
func (r *fuzzRig) inboundSeeds() []input {
	var out []input
	add := func(data []byte) { out = append(out, input{data: data, from: subnetPort}) }
	for _, f := range families() {
		tcp, udp, echo := r.ports["tcp"+f.name], r.ports["udp"+f.name], r.ports["icmp"+f.name]
		data := pkt.TCP(ap(f.server, 80), ap(f.outside, tcp), packet.ACK|packet.PSH, 5001, 1001, make([]byte, 3000))
		add(data)
		add(pkt.TCP(ap(f.server, 80), ap(f.outside, tcp), packet.RST, 5001, 0, nil))
		add(pkt.TCP(ap(f.server, 80), ap(f.outside, tcp), packet.FIN|packet.ACK, 5001, 1001, nil))
		add(pkt.TCP(ap(f.server, 81), ap(f.outside, tcp), packet.SYN, 1, 0, nil))
		add(pkt.UDP(ap(f.server, 53), ap(f.outside, udp), []byte("answer")))
		add(pkt.UDP(ap(f.server.Next(), 53), ap(f.outside, udp), []byte("forged")))
		add(pkt.Echo(f.server, f.outside, echo, 1, pkt.Reply, nil))
		add(pkt.Echo(f.server, f.outside, echo, 1, pkt.Request, nil))
		typ := uint8(3)
		if f.name == "v6" {
			typ = 1
		}
		sent := pkt.UDP(ap(f.outside, udp), ap(f.server, 53), []byte("q"))
		add(pkt.ICMP(f.server, f.outside, typ, 3, 0, sent))
		add(pkt.ICMP(f.server, f.outside, typ, 3, 0, sent[:len(sent)-1]))
		big := pkt.TCP(ap(f.outside, tcp), ap(f.server, 80), packet.ACK, 1001, 5001, make([]byte, 1300))
		if f.name == "v6" {
			add(pkt.ICMP(f.server, f.outside, 2, 0, 1300, big))
		} else {
			add(pkt.ICMP(f.server, f.outside, 3, 4, 1300, big[:28]))
		}
		s := pkt.Super(data, 1200)
		out = append(out, input{data: s.Data, gso: s.GSO, from: subnetPort}, input{data: data, from: taskPort})
	}
	return out
}

// hostInboundSeeds are packets as an egress sends them to a host.
func (r *fuzzRig) hostInboundSeeds() []input {
	var out []input
	add := func(data []byte) { out = append(out, input{data: data}) }
	for _, f := range families() {
		add(pkt.TCP(ap(f.server, 80), ap(f.task, 4000), packet.ACK|packet.PSH, 5001, 1001, []byte("data")))
		add(pkt.TCP(ap(f.server, 80), ap(f.task, 4000), packet.RST, 5001, 0, nil))
		add(pkt.UDP(ap(f.server, 53), ap(f.task, 4000), []byte("answer")))
		add(pkt.UDP(ap(f.server, 53), ap(f.other, 4000), []byte("answer")))
		add(pkt.UDP(ap(f.server, 54), ap(f.task, 4000), []byte("forged")))
		add(pkt.Echo(f.server, f.task, 9, 1, pkt.Reply, nil))
		typ := uint8(3)
		if f.name == "v6" {
			typ = 1
		}
		sent := pkt.UDP(ap(f.task, 4000), ap(f.server, 53), []byte("q"))
		add(pkt.ICMP(f.server, f.task, typ, 1, 0, sent))
		add(pkt.ICMP(f.server, f.other, typ, 1, 0, bytes.Clone(sent)))
		s := pkt.Super(pkt.TCP(ap(f.server, 80), ap(f.task, 4000), packet.ACK, 5001, 1001, make([]byte, 2400)), 1200)
		out = append(out, input{data: s.Data, gso: s.GSO})
	}
	return out
}
