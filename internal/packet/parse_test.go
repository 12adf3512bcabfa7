package packet_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// parse parses data as an ordinary packet.
func parse(t testing.TB, data []byte) (*packet.Parsed, packet.Reason) {
	t.Helper()
	var p packet.Parsed
	r := p.Parse(&packet.Packet{Data: data})
	return &p, r
}

// mustParse parses a packet that has to pass.
func mustParse(t testing.TB, pk *packet.Packet) *packet.Parsed {
	t.Helper()
	var p packet.Parsed
	if r := p.Parse(pk); r != packet.OK {
		t.Fatalf("Parse = %v, want ok", r)
	}
	return &p
}

// row is one line of a table: a packet and the verdict on it.
type row struct {
	name string
	data []byte
	want packet.Reason
}

func runRows(t *testing.T, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if _, got := parse(t, r.data); got != r.want {
				t.Errorf("Parse = %v, want %v", got, r.want)
			}
		})
	}
}

func v4(opts []byte) []byte {
	return pkt.Opts{IPOptions: opts}.TCP(c4, s4, packet.ACK, 1, 2, []byte("x"))
}

// chain is a TCP/IPv6 segment behind the given extension headers.
func chain(kinds ...uint8) []byte {
	ext, first := pkt.Chain(packet.ProtoTCP, kinds...)
	for i, off := 0, 0; i < len(kinds); i++ {
		if kinds[i] == 43 {
			ext[off+2] = 4 // a segment routing header that is used up
		}
		off += 8
		if kinds[i] == 51 {
			off += 8
		}
	}
	return pkt.Opts{Extensions: ext, First: first}.TCP(c6, s6, packet.ACK, 1, 2, []byte("x"))
}

// options is a TCP/IPv6 segment behind one options header with content o.
func options(kind uint8, o ...byte) []byte {
	ext, first := pkt.Chain(packet.ProtoTCP, kind)
	copy(ext[2:], o)
	return pkt.Opts{Extensions: ext, First: first}.TCP(c6, s6, packet.ACK, 1, 2, nil)
}

func edit(data []byte, at int, b ...byte) []byte {
	return pkt.Edit(data, func(d []byte) { copy(d[at:], b) })
}

func TestParseFields(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		l4 := uint16(20)
		if v == 6 {
			l4 = 40
		}
		o := pkt.Opts{TTL: 33, Window: 777, TCPOptions: pkt.MSS(1400)}
		p := mustParse(t, &packet.Packet{Data: o.TCP(c, s, packet.SYN|packet.ECE|packet.CWR, 0xfedcba98, 0, []byte("hi"))})
		got := *p
		got.Data = nil
		want := packet.Parsed{
			Src: packet.AddrFrom(c.Addr()), Dst: packet.AddrFrom(s.Addr()), SrcPort: c.Port(), DstPort: s.Port(),
			Version: uint8(v), Proto: packet.ProtoTCP, TTL: 33, L4: l4, Payload: l4 + 24, Transport: true,
			Flags: packet.SYN | packet.ECE | packet.CWR, Seq: 0xfedcba98, Window: 777,
		}
		if got.Src != want.Src || got.Dst != want.Dst || got.SrcPort != want.SrcPort || got.DstPort != want.DstPort ||
			got.Version != want.Version || got.Proto != want.Proto || got.TTL != want.TTL || got.L4 != want.L4 ||
			got.Payload != want.Payload || !got.Transport || got.Fragment || got.Flags != want.Flags ||
			got.Seq != want.Seq || got.Ack != 0 || got.Window != want.Window || got.GSO != want.GSO {
			t.Errorf("IPv%d: parsed\n%+v, want\n%+v", v, got, want)
		}
		if p.PayloadLen() != 2 || p.Segments() != 1 {
			t.Errorf("IPv%d: payload %d, segments %d; want 2, 1", v, p.PayloadLen(), p.Segments())
		}
	}
}

// An echo reply's tuple is the mirror of its request's (I1).
func TestI1_EchoIdentifierIsThePort(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		p := mustParse(t, &packet.Packet{Data: pkt.Echo(c.Addr(), s.Addr(), 0x1234, 1, pkt.Request, nil)})
		if p.SrcPort != 0x1234 || p.DstPort != 0 || !p.IsEchoRequest() || p.IsEchoReply() || p.IsICMPError() {
			t.Errorf("IPv%d request: ports %#x, %#x", v, p.SrcPort, p.DstPort)
		}
		p = mustParse(t, &packet.Packet{Data: pkt.Echo(s.Addr(), c.Addr(), 0x1234, 1, pkt.Reply, nil)})
		if p.SrcPort != 0 || p.DstPort != 0x1234 || !p.IsEchoReply() || p.IsEchoRequest() || p.IsICMPError() {
			t.Errorf("IPv%d reply: ports %#x, %#x", v, p.SrcPort, p.DstPort)
		}
	}
}

// Bytes behind the IP length belong to a lower layer and are cut, in the
// packet too.
func TestParseCutsTrailingBytes(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		whole := pkt.UDP(c, s, []byte("payload"))
		pk := packet.Packet{Data: append(append([]byte(nil), whole...), 0xde, 0xad, 0xbe, 0xef)}
		p := mustParse(t, &pk)
		if !bytes.Equal(p.Data, whole) || !bytes.Equal(pk.Data, whole) {
			t.Errorf("IPv%d: %d bytes parsed, %d in the packet; want %d", v, len(p.Data), len(pk.Data), len(whole))
		}
	}
}

func TestParseHeaders(t *testing.T) {
	tcp4, tcp6 := pkt.TCP(c4, s4, packet.ACK, 1, 2, nil), pkt.TCP(c6, s6, packet.ACK, 1, 2, nil)
	runRows(t, []row{
		{"empty", nil, packet.Truncated},
		{"version 5", []byte{0x50, 0, 0, 0}, packet.BadVersion},
		{"ARP", make([]byte, 28), packet.BadVersion},
		{"v4 cut in the header", tcp4[:19], packet.Truncated},
		{"v6 cut in the header", tcp6[:39], packet.Truncated},
		{"v4 one byte missing", tcp4[:39], packet.Truncated},
		{"v6 one byte missing", tcp6[:59], packet.Truncated},
		{"v4 header length 4 words", edit(tcp4, 0, 0x44), packet.BadHeader},
		{"v4 header longer than the packet", edit(edit(tcp4, 2, 0, 40), 0, 0x4f), packet.BadHeader},
		{"v4 total length 0", edit(tcp4, 2, 0, 0), packet.BadHeader},
		{"v4 total length 19", edit(tcp4, 2, 0, 19), packet.BadHeader},
		{"v4 total length too long", edit(tcp4, 2, 0, 41), packet.Truncated},
		{"v6 length too long", edit(tcp6, 4, 0, 21), packet.Truncated},
		{"v6 length 0", edit(tcp6, 4, 0, 0), packet.Truncated},
		{"v4 no room for TCP", edit(tcp4, 2, 0, 39), packet.Truncated},
		{"v6 no room for TCP", edit(tcp6, 4, 0, 19), packet.Truncated},
		{"v4 TTL 0 is for DecrementTTL", edit(tcp4, 8, 0), packet.OK},
		{"TCP offset 4", edit(tcp4, 32, 0x40), packet.BadHeader},
		{"TCP offset behind the end", edit(tcp4, 32, 0x60), packet.Truncated},
		{"UDP length 7", edit(pkt.UDP(c4, s4, nil), 24, 0, 7), packet.BadHeader},
		{"UDP length 0", edit(pkt.UDP(c6, s6, nil), 44, 0, 0), packet.BadHeader},
		{"UDP length too long", edit(pkt.UDP(c4, s4, nil), 24, 0, 9), packet.Truncated},
		{"UDP options behind the datagram", edit(pkt.UDP(c4, s4, []byte("options!")), 24, 0, 12), packet.OK},
		{"ICMP cut", pkt.Raw(c4.Addr(), s4.Addr(), packet.ProtoICMP, make([]byte, 7)), packet.Truncated},
		{"ICMPv6 cut", pkt.Raw(c6.Addr(), s6.Addr(), packet.ProtoICMPv6, make([]byte, 7)), packet.Truncated},
	})
}

// TestC4_HeaderChecksumVerified: every single bit of an IPv4 header that flips
// is noticed, options included.
func TestC4_HeaderChecksumVerified(t *testing.T) {
	for _, opts := range [][]byte{nil, {1, 1, 1, 0}} {
		whole := v4(opts)
		hdr := int(whole[0]&0xf) * 4
		for bit := range hdr * 8 {
			b := append([]byte(nil), whole...)
			b[bit/8] ^= 1 << (bit % 8)
			if _, r := parse(t, b); r == packet.OK {
				t.Errorf("bit %d of byte %d flipped: accepted", bit%8, bit/8)
			}
		}
		b := append([]byte(nil), whole...)
		b[10]++
		if _, r := parse(t, b); r != packet.BadChecksum {
			t.Errorf("checksum off by 256: %v, want %v", r, packet.BadChecksum)
		}
	}
}

func TestZ6_IPv4Options(t *testing.T) {
	runRows(t, []row{
		{"NOP", v4([]byte{1, 1, 1, 1}), packet.OK},
		{"EOL", v4([]byte{0, 0, 0, 0}), packet.OK},
		{"40 bytes of NOP", v4(bytes.Repeat([]byte{1}, 40)), packet.OK},
		{"LSRR", v4([]byte{131, 7, 4, 10, 0, 1, 9}), packet.BadOption},
		{"SSRR", v4([]byte{137, 7, 4, 10, 0, 1, 9}), packet.BadOption},
		{"LSRR behind NOPs", v4([]byte{1, 1, 131, 7, 4, 10, 0, 1, 9}), packet.BadOption},
		{"record route", v4([]byte{7, 7, 4, 0, 0, 0, 0}), packet.BadOption},
		{"timestamp", v4([]byte{68, 8, 5, 0, 0, 0, 0, 0}), packet.BadOption},
		{"router alert", v4([]byte{148, 4, 0, 0}), packet.BadOption},
		{"CIPSO", v4([]byte{134, 8, 0, 0, 0, 1, 1, 0}), packet.BadOption},
		{"length 0", v4([]byte{131, 0, 0, 0}), packet.BadOption},
		{"length behind the header", v4([]byte{7, 40, 4, 0}), packet.BadOption},
		{"length missing", v4([]byte{1, 1, 1, 7}), packet.BadOption},
	})
}

func TestT5_TCPFlags(t *testing.T) {
	const f, s, r, a, u = packet.FIN, packet.SYN, packet.RST, packet.ACK, packet.URG
	good := map[uint8]bool{s: true, s | u: true, s | a: true, r: true, r | a: true, f | a: true, f | a | u: true, a: true, a | u: true}
	for flags := range 256 {
		want := packet.BadFlags
		if good[uint8(flags)&(f|s|r|a|u)] {
			want = packet.OK
		}
		for _, v := range []int{4, 6} {
			c, sv := ends(v)
			got, reason := parse(t, pkt.TCP(c, sv, uint8(flags), 1, 2, nil))
			if reason != want {
				t.Errorf("IPv%d flags %#02x: %v, want %v", v, flags, reason, want)
			}
			if got.SrcPort != c.Port() || got.DstPort != sv.Port() || got.Flags != uint8(flags) {
				t.Errorf("IPv%d flags %#02x: a log could not name the segment", v, flags)
			}
		}
	}
}

func TestZ5_LAND(t *testing.T) {
	self4, self6 := netip.AddrPortFrom(c4.Addr(), 99), netip.AddrPortFrom(c6.Addr(), 99)
	runRows(t, []row{
		{"v4", pkt.TCP(self4, self4, packet.SYN, 1, 0, nil), packet.Martian},
		{"v6", pkt.TCP(self6, self6, packet.SYN, 1, 0, nil), packet.Martian},
		{"v4 other ports", pkt.UDP(self4, c4, nil), packet.Martian},
	})
}

func TestZ2_MartiansRefusedBothWays(t *testing.T) {
	for _, a := range []string{"0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255"} {
		m := netip.AddrPortFrom(netip.MustParseAddr(a), 80)
		runRows(t, []row{
			{a + " as source", pkt.UDP(m, s4, nil), packet.Martian},
			{a + " as destination", pkt.UDP(c4, m, nil), packet.Martian},
		})
	}
	for _, a := range []string{"::", "::1", "fe80::1", "ff02::1", "fec0::1", "::10.0.0.1"} {
		m := netip.AddrPortFrom(netip.MustParseAddr(a), 80)
		runRows(t, []row{
			{a + " as source", pkt.UDP(m, s6, nil), packet.Martian},
			{a + " as destination", pkt.UDP(c6, m, nil), packet.Martian},
		})
	}
	mapped := netip.MustParseAddr("::ffff:10.0.1.20").As16()
	runRows(t, []row{
		{"mapped source on the wire", edit(pkt.UDP(c6, s6, nil), 8, mapped[:]...), packet.Martian},
		{"mapped destination on the wire", edit(pkt.UDP(c6, s6, nil), 24, mapped[:]...), packet.Martian},
	})
}

// TestU16_ProtocolsWithoutPorts: refused, but a log and a policy can name them.
func TestU16_ProtocolsWithoutPorts(t *testing.T) {
	for proto := range 256 {
		switch proto {
		case packet.ProtoTCP, packet.ProtoUDP:
			continue
		case packet.ProtoICMP, packet.ProtoICMPv6:
			// Each in the other family only.
		}
		body := make([]byte, 40)
		if proto != packet.ProtoICMP {
			p, r := parse(t, pkt.Raw(c4.Addr(), s4.Addr(), uint8(proto), body))
			if r != packet.UnsupportedProtocol || p.Proto != uint8(proto) || p.Src != packet.AddrFrom(c4.Addr()) ||
				p.Dst != packet.AddrFrom(s4.Addr()) || len(p.Data) != 60 {
				t.Errorf("IPv4 protocol %d: %v %+v", proto, r, p)
			}
		}
		switch proto {
		case packet.ProtoICMPv6, 0, 43, 44, 51, 60, 135, 139, 140, 253, 254:
			continue
		}
		p, r := parse(t, pkt.Raw(c6.Addr(), s6.Addr(), uint8(proto), body))
		if r != packet.UnsupportedProtocol || p.Proto != uint8(proto) || p.Src != packet.AddrFrom(c6.Addr()) {
			t.Errorf("IPv6 protocol %d: %v", proto, r)
		}
	}
}

func TestI10_ICMPTypes(t *testing.T) {
	quote := pkt.UDP(s4, c4, []byte("12345678"))
	for typ := range 256 {
		want := packet.UnsupportedProtocol
		switch typ {
		case 0, 3, 8, 11, 12:
			want = packet.OK
		}
		p, r := parse(t, pkt.ICMP(c4.Addr(), s4.Addr(), uint8(typ), 0, 0, quote))
		if r != want || p.Type != uint8(typ) || !p.Transport {
			t.Errorf("ICMP type %d: %v, want %v", typ, r, want)
		}
		if p.IsICMPError() != (typ == 3 || typ == 11 || typ == 12) {
			t.Errorf("ICMP type %d: IsICMPError = %v", typ, p.IsICMPError())
		}
		want = packet.UnsupportedProtocol
		if typ >= 1 && typ <= 4 || typ == 128 || typ == 129 {
			want = packet.OK
		}
		p, r = parse(t, pkt.ICMP(c6.Addr(), s6.Addr(), uint8(typ), 0, 0, quote))
		if r != want || p.Type != uint8(typ) {
			t.Errorf("ICMPv6 type %d: %v, want %v", typ, r, want)
		}
		if p.IsICMPError() != (typ >= 1 && typ <= 4) {
			t.Errorf("ICMPv6 type %d: IsICMPError = %v", typ, p.IsICMPError())
		}
	}
}

func TestV3_ExtensionHeaders(t *testing.T) {
	long, first := pkt.Chain(packet.ProtoTCP, 60)
	for range 31 {
		long = append(long, 1, 6, 0, 0, 0, 0, 0, 0)
	}
	long[1] = 31
	tooLong := append(append([]byte(nil), long...), 1, 6, 0, 0, 0, 0, 0, 0)
	tooLong[1] = 32
	tcp := func(ext []byte) []byte {
		return pkt.Opts{Extensions: ext, First: first}.TCP(c6, s6, packet.ACK, 1, 2, nil)
	}
	runRows(t, []row{
		{"hop by hop", chain(0), packet.OK},
		{"destination options", chain(60), packet.OK},
		{"used-up routing header", chain(43), packet.OK},
		{"authentication", chain(51), packet.OK},
		{"mobility, HIP, shim6", chain(135, 139, 140), packet.OK},
		{"experimental", chain(253, 254), packet.OK},
		{"eight headers", chain(0, 60, 43, 44, 51, 60, 60, 60), packet.OK},
		{"nine headers", chain(0, 60, 43, 44, 51, 60, 60, 60, 60), packet.BadExtension},
		{"hop by hop not first", chain(60, 0), packet.BadExtension},
		{"hop by hop twice", chain(0, 0), packet.BadExtension},
		{"256 bytes", tcp(long), packet.OK},
		{"264 bytes", tcp(tooLong), packet.BadExtension},
		{"no next header", pkt.Raw(c6.Addr(), s6.Addr(), 59, nil), packet.UnsupportedProtocol},
		{"ESP behind options", edit(chain(60), 40, 50), packet.UnsupportedProtocol},
		{"chain that ends in the air", chain(60)[:40+4], packet.Truncated},
		{"cut in an extension header", edit(chain(60)[:44], 4, 0, 4), packet.Truncated},
		{"header longer than the packet", edit(chain(60), 41, 20), packet.Truncated},
		{"authentication of 12 bytes", edit(chain(51), 41, 1), packet.BadExtension},
		{"jumbo payload", options(0, 0xc2, 4, 0, 1, 0, 0), packet.BadExtension},
		{"home address", options(60, 0xc9, 4, 0, 0, 0, 0), packet.BadExtension},
		{"option behind the header", options(60, 5, 9, 0, 0, 0, 0), packet.BadExtension},
		{"option without a length", options(60, 0, 0, 0, 0, 0, 5), packet.BadExtension},
		{"all padding", options(60, 0, 0, 0, 0, 0, 0), packet.OK},
		{"unknown option", options(60, 0x1e, 2, 0, 0, 0, 0), packet.OK},
	})
	p := mustParse(t, &packet.Packet{Data: chain(0, 60, 43, 51)})
	if p.Proto != packet.ProtoTCP || p.L4 != 40+8+8+8+16 || p.SrcPort != c6.Port() || p.PayloadLen() != 1 {
		t.Errorf("rules would see protocol %d at %d, want TCP at 80", p.Proto, p.L4)
	}
}

func TestV4_RoutingHeader(t *testing.T) {
	runRows(t, []row{
		{"type 0 used up", edit(chain(43), 42, 0, 0), packet.RoutingHeader},
		{"type 0", edit(chain(43), 42, 0, 1), packet.RoutingHeader},
		{"type 2 with a segment left", edit(chain(43), 42, 2, 1), packet.RoutingHeader},
		{"segment routing with segments left", edit(chain(43), 42, 4, 3), packet.RoutingHeader},
	})
}

// be returns v as two bytes in network order.
func be(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// linuxPackets are packets as a Linux 6.18 kernel put them on a veth without
// checksum offload: SYN, DNS query, last fragment, ping, both families.
func linuxPackets(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/linux.hex")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		if out[name], err = hex.DecodeString(digits); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestParseLinuxPackets(t *testing.T) {
	all := linuxPackets(t)
	if len(all) < 8 {
		t.Fatalf("only %d packets", len(all))
	}
	for name, b := range all {
		p, r := parse(t, b)
		if r != packet.OK || p.VerifyChecksum() != packet.OK || pkt.Check(b) != nil {
			t.Errorf("%s: %v, checksum %v, %v", name, r, p.VerifyChecksum(), pkt.Check(b))
		}
		if p.Fragment != strings.Contains(name, "fragment") || p.IsEchoRequest() != strings.Contains(name, "ping") ||
			p.Flags == packet.SYN != strings.Contains(name, "syn") {
			t.Errorf("%s: parsed as %+v", name, p)
		}
	}
}

// TestZ42_TruncatedAtEveryByte: a packet cut anywhere is refused, and so is one
// that is cut and has its lengths set to match, unless what is left is whole.
func TestZ42_TruncatedAtEveryByte(t *testing.T) {
	for _, b := range append(seeds(), chain(0, 60, 43, 51)) {
		if _, r := parse(t, b); r != packet.OK {
			continue
		}
		for n := range b {
			cut := b[:n:n]
			if _, r := parse(t, cut); r == packet.OK {
				t.Errorf("%x cut to %d bytes: accepted", b, n)
			}
			if n < 40 {
				continue
			}
			short := pkt.Edit(cut, func(d []byte) {
				if d[0]>>4 == 4 {
					copy(d[2:], be(uint16(n)))
				} else {
					copy(d[4:], be(uint16(n-40)))
				}
			})
			if p, r := parse(t, short); r == packet.OK && (int(p.L4) > n || int(p.Payload) > n) {
				t.Errorf("%x shortened to %d bytes: offsets %d, %d", b, n, p.L4, p.Payload)
			}
		}
	}
}
