package packet_test

import (
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestG6_OffloadsThatLie: whatever a virtio-net header says is compared with
// the packet.
func TestG6_OffloadsThatLie(t *testing.T) {
	tcp4 := pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 2, data(4000)), 1000)
	tcp6 := pkt.Super(pkt.TCP(c6, s6, packet.ACK, 1, 2, data(4000)), 1000)
	udp4 := pkt.Super(pkt.UDP(c4, s4, data(4000)), 1000)
	with := func(pk packet.Packet, f func(g *packet.GSO)) packet.Packet {
		f(&pk.GSO)
		return pk
	}
	changed := func(pk packet.Packet, f func(b []byte)) packet.Packet {
		pk.Data = pkt.Edit(pk.Data, f)
		return pk
	}
	for _, r := range []struct {
		name string
		pk   packet.Packet
		want packet.Reason
	}{
		{"tcp4", tcp4, packet.OK},
		{"tcp6", tcp6, packet.OK},
		{"udp4", udp4, packet.OK},
		{"header length unknown", with(tcp4, func(g *packet.GSO) { g.HdrLen = 0 }), packet.OK},
		{"header length short", with(tcp4, func(g *packet.GSO) { g.HdrLen-- }), packet.BadOffload},
		{"header length long", with(tcp4, func(g *packet.GSO) { g.HdrLen = 4000 }), packet.BadOffload},
		{"segment size 0", with(tcp4, func(g *packet.GSO) { g.Size = 0 }), packet.BadOffload},
		{"segment size over the payload", with(tcp4, func(g *packet.GSO) { g.Size = 65535 }), packet.OK},
		{"no partial checksum", with(tcp4, func(g *packet.GSO) { g.Partial = false }), packet.BadOffload},
		{"checksum starts elsewhere", with(tcp4, func(g *packet.GSO) { g.CsumStart = 65535 }), packet.BadOffload},
		{"checksum starts at 0", with(tcp4, func(g *packet.GSO) { g.CsumStart = 0 }), packet.BadOffload},
		{"checksum elsewhere", with(tcp4, func(g *packet.GSO) { g.CsumOffset = 6 }), packet.BadOffload},
		{"other family", with(tcp4, func(g *packet.GSO) { g.Type = packet.GSOTCP6 }), packet.BadOffload},
		{"other family 6", with(tcp6, func(g *packet.GSO) { g.Type = packet.GSOTCP4 }), packet.BadOffload},
		{"UDP type on TCP", with(tcp4, func(g *packet.GSO) { g.Type = packet.GSOUDP }), packet.BadOffload},
		{"TCP type on UDP", with(udp4, func(g *packet.GSO) { g.Type = packet.GSOTCP4 }), packet.BadOffload},
		{"unknown type", with(tcp4, func(g *packet.GSO) { g.Type = 200 }), packet.BadOffload},
		{"UDP length shorter", changed(udp4, func(b []byte) { b[24]-- }), packet.BadOffload},
		{"SYN in many segments", changed(tcp4, func(b []byte) { b[33] = packet.SYN }), packet.BadOffload},
		{"RST in many segments", changed(tcp4, func(b []byte) { b[33] = packet.RST | packet.ACK }), packet.BadOffload},
		{"fragment", changed(tcp4, func(b []byte) { b[6] = 0x20 }), packet.FragmentRefused},
		{"fragment of whole octets", func() packet.Packet {
			pk := pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 2, data(4004)), 1000)
			return changed(pk, func(b []byte) { b[6] = 0x20 })
		}(), packet.BadOffload},
		{"partial echo", packet.Packet{Data: pkt.Echo(c4.Addr(), s4.Addr(), 1, 1, pkt.Request, nil),
			GSO: packet.GSO{Partial: true, CsumStart: 20, CsumOffset: 2}}, packet.BadOffload},
		{"plain partial", pkt.Partial(pkt.UDP(c6, s6, data(10))), packet.OK},
		{"plain partial header length", with(pkt.Partial(pkt.UDP(c6, s6, data(10))), func(g *packet.GSO) { g.HdrLen = 52 }), packet.BadOffload},
		{"largest", pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 2, data(65535-40)), 1448), packet.OK},
	} {
		t.Run(r.name, func(t *testing.T) {
			var p packet.Parsed
			if got := p.Parse(&r.pk); got != r.want {
				t.Fatalf("Parse = %v, want %v", got, r.want)
			}
			if r.want == packet.OK && (r.pk.GSO.HdrLen != p.Payload || p.GSO.HdrLen != p.Payload) {
				t.Errorf("header length %d, %d; want %d", r.pk.GSO.HdrLen, p.GSO.HdrLen, p.Payload)
			}
		})
	}
	p := mustParse(t, &tcp4)
	if p.Segments() != 4 {
		t.Errorf("%d segments, want 4", p.Segments())
	}
}
