package device

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

var (
	client4 = netip.MustParseAddrPort("100.112.0.2:40000")
	server4 = netip.MustParseAddrPort("10.0.1.7:5432")
	client6 = netip.MustParseAddrPort("[fd00:2::2]:40000")
	server6 = netip.MustParseAddrPort("[fd00:1::7]:5432")
)

// vnetHeader builds a virtio-net header field by field.
func vnetHeader(flags, typ uint8, hdrLen, size, start, offset uint16) []byte {
	h := []byte{flags, typ}
	for _, v := range []uint16{hdrLen, size, start, offset} {
		h = binary.NativeEndian.AppendUint16(h, v)
	}
	return h
}

func TestG6_VirtioHeaderThatLies(t *testing.T) {
	tcp4 := pkt.TCP(client4, server4, packet.ACK, 1, 1, make([]byte, 4000))
	tcp6 := pkt.TCP(client6, server6, packet.ACK, 1, 1, make([]byte, 4000))
	udp4 := pkt.UDP(client4, server4, make([]byte, 4000))
	opts4 := pkt.Opts{IPOptions: []byte{1, 1, 1, 1}}.TCP(client4, server4, packet.ACK, 1, 1, make([]byte, 4000))
	ext, first := pkt.Chain(packet.ProtoTCP, 60)
	ext6 := pkt.Opts{Extensions: ext, First: first}.TCP(client6, server6, packet.ACK, 1, 1, make([]byte, 4000))
	fragment := pkt.Edit(tcp4, func(b []byte) { b[6] = 0x20 })
	cut := func(b []byte, n int) []byte { return b[:n] }
	tests := []struct {
		name string
		hdr  []byte
		data []byte
		want packet.Reason
		typ  packet.GSOType
	}{
		{"no offload", vnetHeader(0, 0, 0, 0, 0, 0), tcp4, packet.OK, packet.GSONone},
		{"no offload, junk in the other fields", vnetHeader(0, 0, 9, 9, 9, 9), tcp4, packet.OK, packet.GSONone},
		{"partial checksum", vnetHeader(1, 0, 0, 0, 20, 16), tcp4, packet.OK, packet.GSONone},
		{"TCP over IPv4", vnetHeader(1, 1, 40, 1400, 20, 16), tcp4, packet.OK, packet.GSOTCP4},
		{"TCP over IPv4 with ECN", vnetHeader(1, 0x81, 40, 1400, 20, 16), tcp4, packet.OK, packet.GSOTCP4},
		{"TCP over IPv6", vnetHeader(1, 4, 60, 1400, 40, 16), tcp6, packet.OK, packet.GSOTCP6},
		{"UDP", vnetHeader(1, 5, 28, 1400, 20, 6), udp4, packet.OK, packet.GSOUDP},
		{"behind IPv4 options", vnetHeader(1, 1, 44, 1400, 24, 16), opts4, packet.OK, packet.GSOTCP4},
		{"behind an extension header", vnetHeader(1, 4, 0, 1400, uint16(40+len(ext)), 16), ext6, packet.OK, packet.GSOTCP6},
		{"hdr_len is never believed", vnetHeader(1, 1, 65535, 1400, 20, 16), tcp4, packet.OK, packet.GSOTCP4},
		{"one segment is no super-packet", vnetHeader(1, 1, 40, 4000, 20, 16), tcp4, packet.OK, packet.GSONone},

		{"csum_start past the end", vnetHeader(1, 0, 0, 0, 65535, 16), tcp4, packet.BadOffload, 0},
		{"csum_start in the IP header", vnetHeader(1, 0, 0, 0, 8, 16), tcp4, packet.BadOffload, 0},
		{"csum_start in the payload", vnetHeader(1, 0, 0, 0, 60, 16), tcp4, packet.BadOffload, 0},
		{"csum_offset past the end", vnetHeader(1, 0, 0, 0, 20, 65535), tcp4, packet.BadOffload, 0},
		{"UDP's offset for TCP", vnetHeader(1, 0, 0, 0, 20, 6), tcp4, packet.BadOffload, 0},
		{"super-packet with a complete checksum", vnetHeader(0, 1, 40, 1400, 20, 16), tcp4, packet.BadOffload, 0},
		{"gso_size 0", vnetHeader(1, 1, 40, 0, 20, 16), tcp4, packet.BadOffload, 0},
		{"gso_size 1, thousands of segments", vnetHeader(1, 1, 40, 1, 20, 16), tcp4, packet.BadOffload, 0},
		{"too many datagrams", vnetHeader(1, 5, 28, 8, 20, 6), udp4, packet.BadOffload, 0},
		{"IPv6 type on IPv4", vnetHeader(1, 4, 40, 1400, 20, 16), tcp4, packet.BadOffload, 0},
		{"IPv4 type on IPv6", vnetHeader(1, 1, 60, 1400, 40, 16), tcp6, packet.BadOffload, 0},
		{"TCP type on UDP", vnetHeader(1, 1, 28, 1400, 20, 6), udp4, packet.BadOffload, 0},
		{"UDP type on TCP", vnetHeader(1, 5, 40, 1400, 20, 16), tcp4, packet.BadOffload, 0},
		{"UDP with ECN", vnetHeader(1, 0x85, 28, 1400, 20, 6), udp4, packet.BadOffload, 0},
		{"UFO, long gone", vnetHeader(1, 3, 28, 1400, 20, 6), udp4, packet.BadOffload, 0},
		{"fragment", vnetHeader(1, 1, 40, 1400, 20, 16), fragment, packet.BadOffload, 0},
		{"shorter than the IP header says", vnetHeader(1, 1, 40, 1400, 20, 16), cut(tcp4, 3000), packet.BadOffload, 0},
		{"cut in the TCP header", vnetHeader(1, 0, 0, 0, 20, 16), cut(tcp4, 30), packet.BadOffload, 0},
		{"cut in the IPv6 header", vnetHeader(1, 0, 0, 0, 40, 16), cut(tcp6, 30), packet.BadOffload, 0},
		{"one byte", vnetHeader(1, 0, 0, 0, 0, 0), cut(tcp4, 1), packet.BadOffload, 0},
		{"neither IPv4 nor IPv6", vnetHeader(1, 0, 0, 0, 20, 16), make([]byte, 100), packet.BadOffload, 0},
		{"TCP header longer than the packet", vnetHeader(1, 0, 0, 0, 20, 16),
			pkt.Edit(pkt.TCP(client4, server4, packet.ACK, 1, 1, nil), func(b []byte) { b[32] = 0xf0 }), packet.BadOffload, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var g packet.GSO
			if got := decodeVnet(tt.hdr, tt.data, &g); got != tt.want {
				t.Fatalf("decodeVnet = %v, want %v", got, tt.want)
			}
			if tt.want == packet.OK && g.Type != tt.typ {
				t.Errorf("type %d, want %d", g.Type, tt.typ)
			}
			if tt.want == packet.OK {
				checkGSO(t, g, tt.data)
			}
		})
	}
}

func TestVirtioHeaderFlags(t *testing.T) {
	data := pkt.UDP(client6, server6, []byte("x"))
	var g packet.GSO
	if r := decodeVnet(vnetHeader(2, 0, 0, 0, 0, 0), data, &g); r != packet.OK || !g.Verified || g.Partial {
		t.Errorf("DATA_VALID: %v, %+v: want a verified packet", r, g)
	}
	if r := decodeVnet(vnetHeader(1, 0, 0, 0, 40, 6), data, &g); r != packet.OK || g.Verified || !g.Partial {
		t.Errorf("NEEDS_CSUM: %v, %+v: want a partial checksum", r, g)
	}
	hdr := make([]byte, vnetLen)
	encodeVnet(hdr, &packet.GSO{Verified: true})
	if want := vnetHeader(2, 0, 0, 0, 0, 0); string(hdr) != string(want) {
		t.Errorf("verified packet is written with %v, want %v", hdr, want)
	}
}

// checkGSO fails the test if g could lead anyone out of data.
func checkGSO(t *testing.T, g packet.GSO, data []byte) {
	t.Helper()
	if !g.Partial {
		if g.Type != packet.GSONone {
			t.Errorf("%+v: a super-packet without a partial checksum", g)
		}
		return
	}
	if int(g.CsumStart)+int(g.CsumOffset)+2 > int(g.HdrLen) || int(g.HdrLen) > len(data) {
		t.Errorf("%+v: offsets outside the headers of a packet of %d bytes", g, len(data))
	}
	if g.Type != packet.GSONone && (g.Size == 0 || len(data)-int(g.HdrLen) <= int(g.Size)) {
		t.Errorf("%+v: not a super-packet in %d bytes", g, len(data))
	}
}

// FuzzVirtioHeader holds decodeVnet to its promise for whatever header and
// packet a guest makes up: what it lets pass leads nobody out of the packet,
// comes back from encodeVnet, and can be cut.
func FuzzVirtioHeader(f *testing.F) {
	tcp := pkt.TCP(client4, server4, packet.ACK|packet.PSH, 1, 1, make([]byte, 3000))
	f.Add(vnetHeader(1, 1, 40, 1400, 20, 16), tcp)
	f.Add(vnetHeader(1, 4, 60, 1400, 40, 16), pkt.TCP(client6, server6, packet.ACK, 1, 1, make([]byte, 3000)))
	f.Add(vnetHeader(1, 5, 28, 100, 20, 6), pkt.UDP(client4, server4, make([]byte, 3000)))
	f.Add(vnetHeader(1, 0, 0, 0, 20, 16), tcp[:40])
	f.Add(vnetHeader(2, 0, 0, 0, 0, 0), tcp)
	f.Add(vnetHeader(255, 255, 65535, 65535, 65535, 65535), tcp)
	ext, first := pkt.Chain(packet.ProtoUDP, 0, 60)
	f.Add(vnetHeader(1, 0, 0, 0, uint16(40+len(ext)), 6), pkt.Opts{Extensions: ext, First: first}.UDP(client6, server6, []byte("hi")))
	buf := make([]byte, packet.MaxPacket)
	f.Fuzz(func(t *testing.T, hdr, data []byte) {
		if len(hdr) < vnetLen || len(data) == 0 || len(data) > packet.MaxPacket {
			return
		}
		p := packet.Packet{Data: data}
		if decodeVnet(hdr, data, &p.GSO) != packet.OK {
			return
		}
		checkGSO(t, p.GSO, data)
		out := make([]byte, vnetLen)
		encodeVnet(out, &p.GSO)
		var again packet.GSO
		if r := decodeVnet(out, data, &again); r != packet.OK || again != p.GSO {
			t.Fatalf("%+v is written as %v, which reads as %v %+v", p.GSO, out, r, again)
		}
		var s packet.Segmenter
		if r := s.Start(&p); r != packet.OK {
			t.Fatalf("%+v passed the device, and the segmenter says %v", p.GSO, r)
		}
		payload, n := 0, 0
		for more := true; more; n++ {
			var k int
			if k, more = s.Next(buf); k == 0 {
				t.Fatalf("segment %d is empty", n)
			}
			payload += k - int(p.GSO.HdrLen)
		}
		if p.GSO.Type != packet.GSONone && payload != len(data)-int(p.GSO.HdrLen) {
			t.Fatalf("segments carry %d bytes of payload, the packet %d", payload, len(data)-int(p.GSO.HdrLen))
		}
	})
}
