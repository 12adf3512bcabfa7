package nat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// shape is everything about a packet but its addresses and ports, so that the
// same packet can be built with others: what a rewrite must give.
type shape struct {
	proto   string // tcp, udp, request, reply
	o       pkt.Opts
	payload []byte
	partial bool
	size    uint16 // of a super-packet, 0 for none
}

func (s shape) build(src, dst netip.AddrPort) packet.Packet {
	var b []byte
	switch s.proto {
	case "tcp":
		b = s.o.TCP(src, dst, packet.ACK|packet.PSH, 7, 9, s.payload)
	case "udp":
		b = s.o.UDP(src, dst, s.payload)
	case "request":
		b = s.o.Echo(src.Addr(), dst.Addr(), src.Port(), 3, pkt.Request, s.payload)
	case "reply":
		b = s.o.Echo(src.Addr(), dst.Addr(), dst.Port(), 3, pkt.Reply, s.payload)
	}
	switch {
	case s.size != 0:
		return pkt.Super(b, s.size)
	case s.partial:
		return pkt.Partial(b)
	}
	return packet.Packet{Data: b}
}

// drawShape draws any packet of one family.
func drawShape(t *rapid.T, v4 bool) shape {
	s := shape{
		proto:   rapid.SampledFrom([]string{"tcp", "udp", "request", "reply"}).Draw(t, "proto"),
		payload: rapid.SliceOfN(rapid.Byte(), 0, 90).Draw(t, "payload"),
	}
	s.o.TTL = rapid.Uint8Range(1, 255).Draw(t, "ttl")
	s.o.TOS = rapid.Byte().Draw(t, "tos")
	if v4 {
		s.o.ID = rapid.Uint16().Draw(t, "id")
		s.o.IPOptions = bytes.Repeat([]byte{1}, rapid.IntRange(0, 10).Draw(t, "nops"))
		s.o.NoChecksum = rapid.Bool().Draw(t, "no checksum")
	} else if rapid.Bool().Draw(t, "extensions") {
		upper := map[string]uint8{"tcp": protoTCP, "udp": protoUDP}[s.proto]
		if upper == 0 {
			upper = protoICMPv6
		}
		s.o.Extensions, s.o.First = pkt.Chain(upper, 0, 60)
	}
	if s.proto == "tcp" || s.proto == "udp" {
		s.partial = rapid.Bool().Draw(t, "partial")
		if s.partial && len(s.payload) > 1 && rapid.Bool().Draw(t, "super") {
			s.size = uint16(rapid.IntRange(1, len(s.payload)-1).Draw(t, "size"))
		}
	}
	if s.partial {
		s.o.NoChecksum = false
	}
	return s
}

func drawAddr(t *rapid.T, v4 bool, label string) netip.Addr {
	b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)
	if v4 {
		return netip.AddrFrom4([4]byte{10, b[1], b[2], 1 + b[3]%250})
	}
	b[0], b[1] = 0xfd, 0
	return netip.AddrFrom16([16]byte(b))
}

// TestC1_RewriteEqualsBuildingAnew rewrites random packets of every kind, full
// and partial, and compares with the same packet built with the new addresses
// by the slow and obvious method. Rewriting back must restore every byte.
func TestC1_RewriteEqualsBuildingAnew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v4 := rapid.Bool().Draw(t, "v4")
		s := drawShape(t, v4)
		ends := make([]netip.AddrPort, 3)
		for i := range ends {
			ends[i] = netip.AddrPortFrom(drawAddr(t, v4, fmt.Sprint("addr", i)), rapid.Uint16().Draw(t, fmt.Sprint("port", i)))
		}
		a, b, c := ends[0], ends[1], ends[2]
		if a.Addr() == b.Addr() || b.Addr() == c.Addr() || a.Addr() == c.Addr() {
			t.Skip("equal addresses")
		}
		orig := s.build(a, b)
		for _, end := range []string{"source", "destination"} {
			in := packet.Packet{Data: bytes.Clone(orig.Data), GSO: orig.GSO}
			var p packet.Parsed
			if r := p.Parse(&in); r != packet.OK {
				t.Fatalf("test packet refused: %v", r)
			}
			before := p
			rewrite, back, want := RewriteSource, a, s.build(c, b)
			if end == "destination" {
				rewrite, back, want = RewriteDestination, b, s.build(a, c)
			}
			rewrite(&p, packet.AddrFrom(c.Addr()), c.Port())
			if !bytes.Equal(p.Data, want.Data) {
				t.Fatalf("%s rewritten:\ngot  %x\nwant %x", end, p.Data, want.Data)
			}
			var q packet.Parsed
			if r := q.Parse(&want); r != packet.OK {
				t.Fatalf("rewritten packet refused: %v", r)
			}
			if p.Src != q.Src || p.Dst != q.Dst || p.SrcPort != q.SrcPort || p.DstPort != q.DstPort {
				t.Fatalf("%s: Parsed says %x:%d > %x:%d, the bytes %x:%d > %x:%d", end,
					p.Src, p.SrcPort, p.Dst, p.DstPort, q.Src, q.SrcPort, q.Dst, q.DstPort)
			}
			rewrite(&p, packet.AddrFrom(back.Addr()), back.Port())
			if !bytes.Equal(p.Data, orig.Data) {
				t.Fatalf("%s and back:\ngot  %x\nwant %x", end, p.Data, orig.Data)
			}
			if p.Src != before.Src || p.Dst != before.Dst || p.SrcPort != before.SrcPort || p.DstPort != before.DstPort {
				t.Fatalf("%s and back: Parsed is not what it was", end)
			}
		}
	})
}

// TestC2_CorruptStaysCorrupt flips each byte behind the addresses in turn: a
// packet with a wrong checksum must not leave with a right one.
func TestC2_CorruptStaysCorrupt(t *testing.T) {
	for _, f := range families {
		good := pkt.TCP(at(f.task, 40000), at(f.server, 443), packet.ACK, 1, 1, []byte("payload"))
		l4 := int(parse(t, good).L4)
		for i := l4; i < len(good); i++ {
			if i-l4 == 12 || i-l4 == 13 {
				continue // data offset and flags: refused by Parse
			}
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			p := parse(t, bad)
			RewriteSource(p, packet.AddrFrom(f.outer), 50000)
			if pkt.Check(p.Data) == nil {
				t.Errorf("%s: byte %d was corrupt and the packet left correct", f.name, i)
			}
		}
	}
}

// TestC3_UDPZero: no checksum stays no checksum, and one that becomes 0 is
// sent as 0xFFFF.
func TestC3_UDPZero(t *testing.T) {
	none := pkt.Opts{NoChecksum: true}.UDP(at(task4, 5000), at(server4, 53), []byte("query"))
	p := parse(t, none)
	RewriteSource(p, packet.AddrFrom(out4), 61000)
	if got := binary.BigEndian.Uint16(p.Data[p.L4+6:]); got != 0 {
		t.Errorf("checksum 0 became %#04x: the receiver will drop it", got)
	}
	for _, f := range families {
		found := false
		for w := 0; w < 1<<16 && !(found && raceEnabled); w++ {
			payload := []byte{byte(w >> 8), byte(w)}
			want := pkt.UDP(at(f.outer, 61000), at(f.server, 53), payload)
			p := parse(t, pkt.UDP(at(f.task, 5000), at(f.server, 53), payload))
			if binary.BigEndian.Uint16(want[p.L4+6:]) != 0xFFFF {
				continue
			}
			found = true
			RewriteSource(p, packet.AddrFrom(f.outer), 61000)
			if !bytes.Equal(p.Data, want) {
				t.Errorf("%s: a computed checksum of 0 left as %x, want ffff", f.name, p.Data[p.L4+6:p.L4+8])
			}
		}
		if !found {
			t.Errorf("%s: no payload gave a computed checksum of 0", f.name)
		}
	}
}

// TestF10_LaterFragmentsChangeAddressOnly: there is no port in them, and what
// stands in its place is payload.
func TestF10_LaterFragmentsChangeAddressOnly(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 40)
	for _, f := range families {
		o := pkt.Opts{MayFragment: true, ID: 77}
		in := pkt.Fragments(o.UDP(at(f.task, 5000), at(f.server, 9000), payload), 300, 77)
		want := pkt.Fragments(o.UDP(at(f.outer, 61000), at(f.server, 9000), payload), 300, 77)
		for i := range in {
			p := parse(t, in[i])
			RewriteSource(p, packet.AddrFrom(f.outer), 61000)
			if !bytes.Equal(p.Data, want[i]) {
				t.Errorf("%s fragment %d:\ngot  %x\nwant %x", f.name, i, p.Data, want[i])
			}
			if i > 0 && p.SrcPort != 0 {
				t.Errorf("%s fragment %d has a port now: %d", f.name, i, p.SrcPort)
			}
		}
	}
}

// TestI1_EchoIdentifier: the identifier is the port of whoever asked; sequence
// and payload stay, which comparing whole packets shows.
func TestI1_EchoIdentifier(t *testing.T) {
	for _, f := range families {
		p := parse(t, pkt.Echo(f.task, f.server, 0, 5, pkt.Request, []byte("ping")))
		RewriteSource(p, packet.AddrFrom(f.outer), 0xFFFF)
		if want := pkt.Echo(f.outer, f.server, 0xFFFF, 5, pkt.Request, []byte("ping")); !bytes.Equal(p.Data, want) || p.SrcPort != 0xFFFF {
			t.Errorf("%s request: identifier %d\ngot  %x\nwant %x", f.name, p.SrcPort, p.Data, want)
		}
		p = parse(t, pkt.Echo(f.server, f.outer, 0xFFFF, 5, pkt.Reply, []byte("ping")))
		RewriteDestination(p, packet.AddrFrom(f.task), 0)
		if want := pkt.Echo(f.server, f.task, 0, 5, pkt.Reply, []byte("ping")); !bytes.Equal(p.Data, want) || p.DstPort != 0 {
			t.Errorf("%s reply: identifier %d\ngot  %x\nwant %x", f.name, p.DstPort, p.Data, want)
		}
		// The other end of an echo has no port to change.
		p = parse(t, pkt.Echo(f.server, f.outer, 9, 5, pkt.Reply, nil))
		RewriteSource(p, packet.AddrFrom(f.router), 1234)
		if want := pkt.Echo(f.router, f.outer, 9, 5, pkt.Reply, nil); !bytes.Equal(p.Data, want) || p.SrcPort != 0 {
			t.Errorf("%s: the answering side's identifier changed", f.name)
		}
	}
}

// TestG4_SuperPacketEqualsItsSegments rewrites a 64 KB super-packet before it
// is cut and each segment after it was cut: the wire must show the same.
func TestG4_SuperPacketEqualsItsSegments(t *testing.T) {
	payload := make([]byte, 60000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	for _, f := range families {
		plain := pkt.TCP(at(f.task, 40000), at(f.server, 443), packet.ACK, 100, 1, payload)
		cut := func(pk packet.Packet) (wire [][]byte) {
			var s packet.Segmenter
			s.Start(&pk)
			for {
				buf := make([]byte, 2000)
				n, more := s.Next(buf)
				wire = append(wire, buf[:n])
				if !more {
					return wire
				}
			}
		}
		super := pkt.Super(plain, 1400)
		want := cut(pkt.Super(plain, 1400))
		p := parsePacket(t, super)
		RewriteSource(p, packet.AddrFrom(f.outer), 50001)
		got := cut(packet.Packet{Data: p.Data, GSO: p.GSO})
		if len(got) != len(want) || len(got) != 43 {
			t.Fatalf("%s: %d segments, want %d", f.name, len(got), len(want))
		}
		for i := range want {
			q := parse(t, want[i])
			RewriteSource(q, packet.AddrFrom(f.outer), 50001)
			if !bytes.Equal(got[i], q.Data) {
				t.Fatalf("%s segment %d:\ngot  %x\nwant %x", f.name, i, got[i][:60], q.Data[:60])
			}
			if err := pkt.Check(got[i]); err != nil {
				t.Fatalf("%s segment %d: %v", f.name, i, err)
			}
		}
	}
}
