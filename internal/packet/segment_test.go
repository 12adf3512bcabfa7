package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"pgregory.net/rapid"
)

// cut returns the wire packets of pk.
func cut(t testing.TB, pk *packet.Packet) [][]byte {
	t.Helper()
	var s packet.Segmenter
	if r := s.Start(pk); r != packet.OK {
		t.Fatalf("Start = %v, want ok", r)
	}
	max := s.MaxLen()
	var out [][]byte
	for more := true; more; {
		buf := bytes.Repeat([]byte{0xa5}, max+16)
		var n int
		n, more = s.Next(buf[:max])
		if n == 0 {
			t.Fatal("Next wrote nothing")
		}
		if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xa5}, len(buf)-n)) {
			t.Fatal("Next wrote behind the packet")
		}
		out = append(out, buf[:n])
	}
	if n, more := s.Next(make([]byte, 65535)); n != 0 || more {
		t.Fatalf("Next after the end = %d, %v; want 0, false", n, more)
	}
	return out
}

// super describes a super-packet by what it was built from.
type super struct {
	v       int
	udp     bool
	o       pkt.Opts
	flags   uint8
	seq     uint32
	payload []byte
	size    int
}

// whole builds the packet that size says nothing about.
func (s super) whole() []byte {
	c, sv := ends(s.v)
	if s.udp {
		return s.o.UDP(c, sv, s.payload)
	}
	return s.o.TCP(c, sv, s.flags, s.seq, 99, s.payload)
}

// twin is the slow and obvious Segmenter: it builds every wire packet anew.
func (s super) twin() [][]byte {
	c, sv := ends(s.v)
	var out [][]byte
	for off := 0; off == 0 || off < len(s.payload); off += s.size {
		part := s.payload[off:min(off+s.size, len(s.payload))]
		last := off+s.size >= len(s.payload)
		o := s.o
		o.ID += uint16(len(out))
		if s.udp {
			out = append(out, o.UDP(c, sv, part))
			continue
		}
		flags := s.flags
		if !last {
			flags &^= packet.FIN | packet.PSH
		}
		if off > 0 {
			flags &^= packet.CWR
		}
		out = append(out, o.TCP(c, sv, flags, s.seq+uint32(off), 99, part))
	}
	return out
}

func (s super) check(t testing.TB) {
	t.Helper()
	pk := pkt.Super(s.whole(), uint16(s.size))
	before := append([]byte(nil), pk.Data...)
	got, want := cut(t, &pk), s.twin()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d of %d:\n%x, want\n%x", i, len(got), head(got[i]), head(want[i]))
		}
		if err := pkt.Check(got[i]); err != nil {
			t.Fatalf("packet %d of %d: %v", i, len(got), err)
		}
	}
	if !bytes.Equal(pk.Data, before) {
		t.Fatal("the super-packet was changed")
	}
	p, r := parse(t, got[0])
	if r != packet.OK || p.Segments() != 1 {
		t.Fatalf("the first packet does not pass Parse: %v", r)
	}
}

// head cuts what a failure prints.
func head(b []byte) []byte { return b[:min(len(b), 100)] }

func TestG1_Segments(t *testing.T) {
	ts := []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	const f, p, a, e, w = packet.FIN, packet.PSH, packet.ACK, packet.ECE, packet.CWR
	for name, s := range map[string]super{
		"FIN and PSH on the last":   {flags: a | f | p, payload: data(4000), size: 1000},
		"CWR on the first":          {flags: a | w | e | p, payload: data(4001), size: 1000},
		"one segment keeps all":     {flags: a | f | p | w, payload: data(900), size: 1000},
		"exactly one":               {flags: a | p, payload: data(1000), size: 1000},
		"one byte more":             {flags: a | p, payload: data(1001), size: 1000},
		"odd size":                  {flags: a, payload: data(5000), size: 333},
		"size 1":                    {flags: a | p, payload: data(50), size: 1},
		"no payload":                {flags: a | f, size: 1000},
		"sequence number wraps":     {flags: a, seq: 0xfffffe00, payload: data(3000), size: 100},
		"more than 64 KiB from seq": {flags: a, seq: 0xffff, payload: data(65000), size: 1448},
		"identification wraps":      {o: pkt.Opts{ID: 0xfffe, MayFragment: true}, flags: a, payload: data(5000), size: 1000},
		"options and TOS":           {o: pkt.Opts{TCPOptions: ts, TOS: 0x2e<<2 | 1, TTL: 3, Flow: 0xabcde, Urgent: 5, Reserved: 1}, flags: a | packet.URG, payload: data(65000), size: 1448},
		"UDP":                       {udp: true, payload: data(4000), size: 1000},
		"UDP, short last":           {udp: true, payload: data(4001), size: 1000},
		"UDP, one datagram":         {udp: true, payload: data(4), size: 1000},
		"UDP, empty":                {udp: true, size: 1000},
		"UDP, odd":                  {udp: true, payload: data(64), size: 1},
		"UDP, identification":       {udp: true, o: pkt.Opts{ID: 0xffff, TTL: 9}, payload: data(60000), size: 1472},
	} {
		for _, v := range []int{4, 6} {
			s.v = v
			t.Run(name, func(t *testing.T) { s.check(t) })
		}
	}
}

// Extension headers and IPv4 options stand in front of every segment.
func TestSegmentsKeepHeaders(t *testing.T) {
	ext, first := pkt.Chain(packet.ProtoTCP, 0, 60)
	s := super{v: 6, o: pkt.Opts{Extensions: ext, First: first}, flags: packet.ACK | packet.PSH, payload: data(4000), size: 999}
	s.check(t)
	s = super{v: 4, o: pkt.Opts{IPOptions: []byte{1, 1, 1, 0}}, flags: packet.ACK | packet.PSH, payload: data(4000), size: 999}
	s.check(t)
}

// TestC3_SegmentsUDPZero: a datagram whose sum comes out as 0 is sent with
// 0xffff.
func TestC3_SegmentsUDPZero(t *testing.T) {
	for _, v := range []int{4, 6} {
		payload := data(4)
		whole := super{v: v, udp: true, payload: payload, size: 4}
		at := 26
		if v == 6 {
			at = 46
		}
		// Adding the checksum field to the payload makes the sum 0.
		sum := binary.BigEndian.Uint16(whole.whole()[at:])
		n := uint32(binary.BigEndian.Uint16(payload)) + uint32(sum)
		binary.BigEndian.PutUint16(payload, uint16(n+n>>16))
		pk := pkt.Super(whole.whole(), 4)
		if got := binary.BigEndian.Uint16(cut(t, &pk)[0][at:]); got != 0xffff {
			t.Errorf("IPv%d: checksum %#04x, want ffff", v, got)
		}
		whole.check(t)
	}
}

// TestG1_SegmentsAgainstTwin: any super-packet is cut as the twin builds it.
func TestG1_SegmentsAgainstTwin(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := super{
			v:       rapid.SampledFrom([]int{4, 6}).Draw(r, "v"),
			udp:     rapid.Bool().Draw(r, "udp"),
			flags:   packet.ACK | rapid.Uint8().Draw(r, "flags")&^(packet.SYN|packet.RST),
			seq:     rapid.Uint32().Draw(r, "seq"),
			payload: data(rapid.IntRange(0, 64000).Draw(r, "payload")),
			size:    rapid.IntRange(1, 9000).Draw(r, "size"),
			o: pkt.Opts{
				ID: rapid.Uint16().Draw(r, "id"), TOS: rapid.Uint8().Draw(r, "tos"), TTL: rapid.Uint8Range(1, 255).Draw(r, "ttl"),
				TCPOptions: bytes.Repeat([]byte{1}, rapid.IntRange(0, 10).Draw(r, "words")*4),
				Window:     rapid.Uint16Range(1, 65535).Draw(r, "window"),
			},
		}
		s.size = max(s.size, len(s.payload)/300) // keep one run short
		s.check(t)
	})
}

// TestC6_PartialIsCompleted: an ordinary packet with a partial checksum leaves
// with a complete one, and one that is complete leaves as it is.
func TestC6_PartialIsCompleted(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		for _, whole := range [][]byte{
			pkt.Opts{ID: 77}.TCP(c, s, packet.SYN|packet.CWR|packet.ECE, 1, 0, nil),
			pkt.TCP(c, s, packet.ACK|packet.PSH|packet.FIN, 1, 2, data(777)),
			pkt.UDP(c, s, data(1)), pkt.UDP(c, s, nil), pkt.UDP(c, s, data(1400)),
		} {
			pk := pkt.Partial(whole)
			if got := cut(t, &pk); len(got) != 1 || !bytes.Equal(got[0], whole) {
				t.Errorf("IPv%d partial: %d packets, first\n%x, want\n%x", v, len(got), got[0], whole)
			}
			pk = packet.Packet{Data: whole}
			if got := cut(t, &pk); len(got) != 1 || !bytes.Equal(got[0], whole) {
				t.Errorf("IPv%d complete: changed on the way", v)
			}
		}
		whole := pkt.Echo(c.Addr(), s.Addr(), 1, 2, pkt.Request, data(99))
		pk := packet.Packet{Data: whole}
		if got := cut(t, &pk); !bytes.Equal(got[0], whole) {
			t.Errorf("IPv%d echo: changed on the way", v)
		}
	}
}

// TestG4_RewriteBeforeCutting: addresses and ports that changed after Parse are
// in every segment's checksum.
func TestG4_RewriteBeforeCutting(t *testing.T) {
	pk := pkt.Super(pkt.TCP(c4, s4, packet.ACK|packet.PSH, 1, 2, data(5000)), 1400)
	p := mustParse(t, &pk)
	if p.Segments() != 4 {
		t.Fatalf("%d segments, want 4", p.Segments())
	}
	copy(pk.Data[12:16], []byte{10, 0, 1, 50})
	binary.BigEndian.PutUint16(pk.Data[20:], 61000)
	p.DecrementTTL()
	pk.Data = pkt.Edit(pk.Data, func([]byte) {})
	for i, b := range cut(t, &pk) {
		if err := pkt.Check(b); err != nil {
			t.Errorf("segment %d: %v", i, err)
		}
		if q := mustParse(t, &packet.Packet{Data: b}); q.SrcPort != 61000 || q.TTL != 63 {
			t.Errorf("segment %d: port %d, TTL %d", i, q.SrcPort, q.TTL)
		}
	}
}

func TestG6_SegmenterRefusesLies(t *testing.T) {
	var s packet.Segmenter
	if r := s.Start(&packet.Packet{}); r != packet.Truncated {
		t.Errorf("empty packet: %v", r)
	}
	good := pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 2, data(4000)), 1000)
	for name, f := range map[string]func(pk *packet.Packet){
		"headers behind the end": func(pk *packet.Packet) { pk.GSO.HdrLen = 65535 },
		"no headers":             func(pk *packet.Packet) { pk.GSO.HdrLen = 0 },
		"transport in the IP":    func(pk *packet.Packet) { pk.GSO.CsumStart = 8 },
		"transport at the end":   func(pk *packet.Packet) { pk.GSO.CsumStart = 40 },
		"size 0":                 func(pk *packet.Packet) { pk.GSO.Size = 0 },
		"checksum elsewhere":     func(pk *packet.Packet) { pk.GSO.CsumOffset = 2 },
		"UDP with TCP's field":   func(pk *packet.Packet) { pk.GSO.Type = packet.GSOUDP },
		"version 5":              func(pk *packet.Packet) { pk.Data[0] = 0x55 },
		"IPv6 in 20 bytes":       func(pk *packet.Packet) { pk.Data[0] = 0x60 },
		"shorter than headers":   func(pk *packet.Packet) { pk.Data = pk.Data[:30] },
	} {
		pk := packet.Packet{Data: append([]byte(nil), good.Data...), GSO: good.GSO}
		f(&pk)
		if r := s.Start(&pk); r != packet.BadOffload {
			t.Errorf("%s: %v, want %v", name, r, packet.BadOffload)
		}
		if n, more := s.Next(make([]byte, 2000)); n != 0 || more {
			t.Errorf("%s: Next = %d, %v", name, n, more)
		}
	}
	// A buffer that is too small ends it.
	if r := s.Start(&good); r != packet.OK {
		t.Fatal(r)
	}
	if n, more := s.Next(make([]byte, 1039)); n != 0 || more {
		t.Errorf("into a small buffer: %d, %v", n, more)
	}
	var zero packet.Segmenter
	if n, more := zero.Next(make([]byte, 100)); n != 0 || more {
		t.Errorf("the zero Segmenter: %d, %v", n, more)
	}
}
