package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// found is what the slow twin reads out of a packet.
type found struct {
	ok    bool // lengths and header checksum make sense
	known bool // proto and l4 are sure: no header that gVisor does not walk
	n     int  // length of the packet
	proto uint8
	l4    int
	later bool // a fragment that is not the first
	first bool // a fragment that is the first of several
}

// slowParse is the slow twin of Parse: gVisor's own validity functions and its
// IPv6 header iterator.
func slowParse(b []byte) (f found) {
	switch header.IPVersion(b) {
	case header.IPv4Version:
		h := header.IPv4(b)
		if !h.IsValid(len(b)) || !h.IsChecksumValid() {
			return f
		}
		f.known = true
		f.n, f.proto, f.l4 = int(h.TotalLength()), h.Protocol(), int(h.HeaderLength())
		f.later = h.FragmentOffset() != 0
		f.first = !f.later && h.More()
	case header.IPv6Version:
		h := header.IPv6(b)
		if !h.IsValid(len(b)) {
			return f
		}
		f.known = true
		f.n = header.IPv6MinimumSize + int(h.PayloadLength())
		it := header.MakeIPv6PayloadIterator(header.IPv6ExtensionHeaderIdentifier(h.NextHeader()),
			buffer.MakeWithData(bytes.Clone(b[header.IPv6MinimumSize:f.n])))
		defer it.Release()
		for {
			ext, done, err := it.Next()
			if err != nil {
				return f
			}
			if done {
				f.known = false
				break
			}
			if frag, is := ext.(header.IPv6FragmentExtHdr); is {
				f.later = f.later || frag.FragmentOffset() != 0
				f.first = f.first || frag.More() && frag.FragmentOffset() == 0
			}
			raw, is := ext.(header.IPv6RawPayloadHeader)
			if is {
				f.proto = uint8(raw.Identifier)
				f.l4 = f.n - int(raw.Buf.Size())
				switch f.proto {
				case 51, 135, 139, 140, 253, 254:
					f.known = false
				}
				raw.Release()
				break
			}
			ext.Release()
		}
	default:
		return f
	}
	f.ok = true
	if !f.known || f.later {
		return f
	}
	l4 := b[f.l4:f.n]
	switch f.proto {
	case packet.ProtoTCP:
		if len(l4) < header.TCPMinimumSize {
			f.ok = false
			return f
		}
		_, _, f.ok = header.TCPValid(header.TCP(l4), nil, 0, tcpip.Address{}, tcpip.Address{}, true)
	case packet.ProtoUDP:
		if len(l4) < header.UDPMinimumSize {
			f.ok = false
			return f
		}
		if f.first {
			f.ok = header.UDP(l4).Length() >= header.UDPMinimumSize
			return f
		}
		f.ok, _ = header.UDPValid(header.UDP(l4), nil, uint16(len(l4)-header.UDPMinimumSize), 0, tcpip.Address{}, tcpip.Address{}, true)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		f.ok = len(l4) >= header.ICMPv4MinimumSize
	}
	return f
}

// seeds are small packets of every kind.
func seeds() [][]byte {
	linuxSYN := pkt.Opts{TCPOptions: []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}}
	ext, first := pkt.Chain(packet.ProtoTCP, 0, 60, 44, 51)
	quote := pkt.UDP(c4, s4, data(8))
	out := [][]byte{
		linuxSYN.TCP(c4, s4, packet.SYN, 1, 0, nil), linuxSYN.TCP(c6, s6, packet.SYN|packet.ECE|packet.CWR, 1, 0, nil),
		pkt.TCP(c4, s4, packet.ACK|packet.PSH, 1, 2, []byte("GET / HTTP/1.1\r\n\r\n")),
		pkt.UDP(c4, s4, []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02db\x05local\x00\x00\x01\x00\x01")),
		pkt.UDP(c6, s6, data(3)), pkt.Opts{NoChecksum: true}.UDP(c4, s4, data(3)),
		pkt.Echo(c4.Addr(), s4.Addr(), 1, 2, pkt.Request, data(8)), pkt.Echo(c6.Addr(), s6.Addr(), 1, 2, pkt.Reply, data(8)),
		pkt.ICMP(s4.Addr(), c4.Addr(), 3, 4, 1280, quote), pkt.ICMP(s6.Addr(), c6.Addr(), 2, 0, 1280, pkt.UDP(c6, s6, data(8))),
		v4([]byte{1, 1, 1, 0}), v4([]byte{131, 7, 4, 10, 0, 1, 9, 0}),
		pkt.Opts{Extensions: ext, First: first}.TCP(c6, s6, packet.ACK, 1, 2, nil),
		chain(43), chain(0, 60, 43), options(0, 0xc2, 4, 0, 1, 0, 0),
		pkt.Raw(c4.Addr(), s4.Addr(), 47, data(12)), pkt.Raw(c6.Addr(), s6.Addr(), 59, nil),
	}
	out = append(out, pkt.Fragments(pkt.Opts{MayFragment: true}.UDP(c4, s4, data(60)), 48, 0)...)
	return append(out, pkt.Fragments(pkt.UDP(c6, s6, data(60)), 88, 5)...)
}

// FuzzParse: whatever the bytes and the offload state, Parse does not read out
// of range, agrees with gVisor about what is where, and what it accepts can be
// worked on by everything else here.
func FuzzParse(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint8(0), false, uint16(0), uint16(0), uint16(0), uint16(0))
	}
	super := pkt.Super(pkt.TCP(c4, s4, packet.ACK, 1, 2, data(100)), 30)
	f.Add(super.Data, uint8(super.GSO.Type), true, super.GSO.HdrLen, super.GSO.Size, super.GSO.CsumStart, super.GSO.CsumOffset)
	b := packet.NewBatch()
	f.Fuzz(func(t *testing.T, in []byte, typ uint8, partial bool, hdr, size, start, off uint16) {
		g := packet.GSO{Type: packet.GSOType(typ), Partial: partial, HdrLen: hdr, Size: size, CsumStart: start, CsumOffset: off}
		checkParse(t, b, in, g)
		// Most of what is interesting hides behind a right header checksum.
		checkParse(t, b, pkt.Edit(in, func([]byte) {}), g)
	})
}

// checkParse is one round of FuzzParse.
func checkParse(t *testing.T, b *packet.Batch, in []byte, g packet.GSO) {
	t.Helper()
	in = in[:len(in):len(in)]
	pk := packet.Packet{Data: in, GSO: g}
	var p packet.Parsed
	r := p.Parse(&pk)
	twin := slowParse(in)
	switch r {
	case packet.Undecided:
		t.Fatal("no verdict")
	case packet.Truncated, packet.BadVersion, packet.BadHeader, packet.BadChecksum:
		if twin.ok && twin.known {
			t.Fatalf("%v, but gVisor reads it as %+v", r, twin)
		}
	}
	// A refused packet must still be safe to name and to answer.
	b.Reset()
	answer(t, b, &p)
	if r != packet.OK {
		if !bytes.Equal(pk.Data, in) {
			t.Fatal("a refused packet was changed")
		}
		return
	}
	checkParsed(t, &pk, &p, in)
	if !twin.ok || len(p.Data) != twin.n {
		t.Fatalf("accepted %d bytes, but gVisor: %+v", len(p.Data), twin)
	}
	if twin.known && (p.Proto != twin.proto || int(p.L4) != twin.l4 || p.Transport == twin.later) {
		t.Fatalf("protocol %d at %d, but gVisor: %+v", p.Proto, p.L4, twin)
	}
	work(t, &pk, &p)
}

// checkParsed holds what every accepted packet promises.
func checkParsed(t *testing.T, pk *packet.Packet, p *packet.Parsed, in []byte) {
	t.Helper()
	if len(p.Data) == 0 || len(p.Data) > len(in) || !bytes.Equal(p.Data, in[:len(p.Data)]) || len(pk.Data) != len(p.Data) {
		t.Fatalf("%d bytes parsed, %d in the packet, %d came in", len(p.Data), len(pk.Data), len(in))
	}
	if int(p.L4) > len(p.Data) || p.L4 < 20 || p.Transport && (int(p.Payload) > len(p.Data) || p.Payload < p.L4+8) {
		t.Fatalf("offsets %d, %d in %d bytes", p.L4, p.Payload, len(p.Data))
	}
	if packet.IsMartian(p.Src) || packet.IsMartian(p.Dst) || p.Src == p.Dst {
		t.Fatalf("from %v to %v", packet.ToNetip(p.Src), packet.ToNetip(p.Dst))
	}
	if p.Transport == (p.FragOff != 0) || p.PayloadLen() < 0 || p.Segments() < 1 {
		t.Fatalf("%+v", p)
	}
	again := packet.Packet{Data: append(bytes.Clone(pk.Data), 1, 2, 3), GSO: pk.GSO}
	var q packet.Parsed
	if r := q.Parse(&again); r != packet.OK {
		t.Fatalf("accepted, then %v", r)
	}
	q.Data = p.Data
	if !equal(&q, p) {
		t.Fatalf("parsed as\n%+v, then as\n%+v", p, q)
	}
}

// equal compares everything but the bytes.
func equal(a, b *packet.Parsed) bool {
	return a.Src == b.Src && a.Dst == b.Dst && a.SrcPort == b.SrcPort && a.DstPort == b.DstPort &&
		a.Version == b.Version && a.Proto == b.Proto && a.TTL == b.TTL && a.L4 == b.L4 && a.Payload == b.Payload &&
		a.Transport == b.Transport && a.Fragment == b.Fragment && a.More == b.More && a.FragOff == b.FragOff &&
		a.FragID == b.FragID && a.FragHdr == b.FragHdr && a.Flags == b.Flags && a.Seq == b.Seq && a.Ack == b.Ack &&
		a.Window == b.Window && a.Type == b.Type && a.Code == b.Code && a.GSO == b.GSO && len(a.Data) == len(b.Data)
}

// answer makes every answer to p and checks those that come out.
func answer(t *testing.T, b *packet.Batch, p *packet.Parsed) {
	t.Helper()
	if pk := packet.AppendReset(b, p); pk != nil {
		if err := pkt.Check(pk.Data); err != nil {
			t.Fatalf("reset: %v", err)
		}
	}
	src := packet.AddrFrom(s4.Addr())
	if p.Version == 6 {
		src = packet.AddrFrom(s6.Addr())
	}
	for e := packet.ICMPError(0); e < 10; e++ {
		pk := packet.AppendICMPError(b, p, e, src, 1400)
		if pk == nil {
			continue
		}
		if err := pkt.Check(pk.Data); err != nil {
			t.Fatalf("error %d: %v", e, err)
		}
		l4, max := 20, 576
		if p.Version == 6 {
			l4, max = 40, 1280
		}
		quote := pk.Data[l4+8:]
		if len(pk.Data) > max || !bytes.HasPrefix(p.Data, quote) || len(pk.Data) < max && len(quote) < len(p.Data) {
			t.Fatalf("error %d quotes %d of %d bytes", e, len(quote), len(p.Data))
		}
		if p.FragOff != 0 || p.IsICMPError() {
			t.Fatalf("error %d about what must not be answered: %+v", e, p)
		}
		if p.Src == src {
			continue // it would be sent to itself
		}
		var q packet.Parsed
		if r := q.Parse(&packet.Packet{Data: pk.Data}); r != packet.OK || !q.IsICMPError() || q.Src != src || q.Dst != p.Src {
			t.Fatalf("error %d is refused at our own door: %v", e, r)
		}
		if packet.AppendICMPError(b, &q, e, p.Src, 0) != nil {
			t.Fatal("an error about an error")
		}
	}
}

// work does to an accepted packet what the path does, in place.
func work(t *testing.T, pk *packet.Packet, p *packet.Parsed) {
	t.Helper()
	pk.Data = bytes.Clone(pk.Data)
	p.Data = pk.Data
	verified := p.VerifyChecksum()
	p.GSO.Verified = false
	ttl := p.DecrementTTL()
	p.ClampMSS(1000)
	if got := p.VerifyChecksum(); got != verified && !(got == packet.OK && verified == packet.BadChecksum) {
		t.Fatalf("checksum was %v and became %v", verified, got)
	} else if got != verified {
		t.Fatal("a corrupt packet became a correct one")
	}
	var q packet.Parsed
	if r := q.Parse(&packet.Packet{Data: pk.Data, GSO: pk.GSO}); r != packet.OK {
		t.Fatalf("after the path (%v): %v", ttl, r)
	}
	var s packet.Segmenter
	if r := s.Start(pk); r != packet.OK {
		t.Fatalf("accepted, but the Segmenter says %v", r)
	}
	sum, count := 0, 0
	for more := true; more; count++ {
		var n int
		dst := make([]byte, s.MaxLen())
		if n, more = s.Next(dst); n == 0 {
			t.Fatal("no packet")
		}
		if pk.GSO.Partial {
			if err := pkt.Check(dst[:n]); err != nil {
				t.Fatalf("packet %d: %v", count, err)
			}
			sum += n - int(pk.GSO.HdrLen)
		}
	}
	if count != p.Segments() || pk.GSO.Partial && sum != p.PayloadLen() {
		t.Fatalf("%d packets with %d bytes; want %d with %d", count, sum, p.Segments(), p.PayloadLen())
	}
}

// FuzzSegment: any super-packet is cut as the slow twin builds it.
func FuzzSegment(f *testing.F) {
	f.Add(false, false, uint8(packet.ACK|packet.PSH|packet.FIN|packet.CWR), uint32(0xfffffff0), uint16(0xffff), uint8(3), uint16(100), data(333))
	f.Add(true, false, uint8(packet.ACK), uint32(1), uint16(0), uint8(0), uint16(1), data(9))
	f.Add(false, true, uint8(0), uint32(0), uint16(7), uint8(0), uint16(64), data(129))
	f.Add(true, true, uint8(0), uint32(0), uint16(7), uint8(0), uint16(64), []byte{})
	f.Fuzz(func(t *testing.T, v6, udp bool, flags uint8, seq uint32, id uint16, words uint8, size uint16, payload []byte) {
		if len(payload) > 60000 || size == 0 {
			return
		}
		s := super{
			v: 4, udp: udp, flags: flags&^(packet.SYN|packet.RST) | packet.ACK, seq: seq, payload: payload,
			size: max(int(size), len(payload)/500),
			o:    pkt.Opts{ID: id, TCPOptions: bytes.Repeat([]byte{1}, int(words%11)*4), TOS: flags, TTL: 1 + words/2},
		}
		if v6 {
			s.v = 6
		}
		s.check(t)
	})
}

// clampTwin is the slow twin of ClampMSS: it takes the list apart and puts it
// together again.
func clampTwin(opts []byte, max uint16) []byte {
	var out []byte
	for len(opts) > 0 {
		n := 1
		if opts[0] == 0 {
			break
		}
		if opts[0] != 1 {
			if len(opts) < 2 || int(opts[1]) < 2 || int(opts[1]) > len(opts) {
				break
			}
			n = int(opts[1])
		}
		o := bytes.Clone(opts[:n])
		if o[0] == 2 && n == 4 && binary.BigEndian.Uint16(o[2:]) > max {
			binary.BigEndian.PutUint16(o[2:], max)
		}
		out, opts = append(out, o...), opts[n:]
	}
	return append(out, opts...)
}

// FuzzClampMSS: the clamped packet is the one built with the clamped options,
// byte for byte, checksum included; and gVisor reads no larger MSS in it.
func FuzzClampMSS(f *testing.F) {
	for _, o := range [][]byte{pkt.MSS(1460), {1, 2, 4, 0xff, 0xff}, {2, 4, 1, 1, 2, 4, 9, 9}, {3, 3, 7, 2, 4, 0x23, 0x28}, {2, 3, 9}, {8, 0}, {2}, {0, 2, 4, 5, 6}} {
		f.Add(o, uint16(1380), false)
		f.Add(o, uint16(536), true)
	}
	f.Fuzz(func(t *testing.T, opts []byte, max uint16, v6 bool) {
		opts = opts[:min(len(opts), 40)]
		for len(opts)%4 != 0 {
			opts = append(opts[:len(opts):len(opts)], 0)
		}
		c, s := c4, s4
		if v6 {
			c, s = c6, s6
		}
		build := func(o []byte) []byte {
			return pkt.Opts{TCPOptions: o}.TCP(c, s, packet.SYN, 1, 0, []byte("odd"))
		}
		whole := build(opts)
		want := build(clampTwin(opts, max))
		partial := pkt.Partial(whole)
		p := mustParse(t, &packet.Packet{Data: whole})
		p.ClampMSS(max)
		if !bytes.Equal(p.Data, want) {
			t.Fatalf("clamped to %d:\n%x, want\n%x", max, p.Data, want)
		}
		mustParse(t, &partial).ClampMSS(max)
		if w := pkt.Partial(want); !bytes.Equal(partial.Data, w.Data) {
			t.Fatalf("partial, clamped to %d:\n%x, want\n%x", max, partial.Data, w.Data)
		}
		before, after := header.ParseSynOptions(opts, false).MSS, header.ParseSynOptions(p.Data[p.L4+20:p.Payload], false).MSS
		if after > before && max >= header.TCPMinimumSendMSS { // gVisor raises smaller ones itself
			t.Fatalf("MSS rose from %d to %d", before, after)
		}
	})
}

// FuzzICMPError: an error about whatever came in is a correct packet or none.
func FuzzICMPError(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint8(packet.FragNeeded), uint16(1280))
	}
	b := packet.NewBatch()
	f.Fuzz(func(t *testing.T, in []byte, e uint8, mtu uint16) {
		var p packet.Parsed
		in = pkt.Edit(in, func([]byte) {})
		p.Parse(&packet.Packet{Data: in[:len(in):len(in)]})
		b.Reset()
		answer(t, b, &p)
		src := packet.AddrFrom(s4.Addr())
		if p.Version == 6 {
			src = packet.AddrFrom(s6.Addr())
		}
		b.Reset()
		pk := packet.AppendICMPError(b, &p, packet.ICMPError(e), src, mtu)
		if pk == nil {
			if len(b.Packets) != 0 {
				t.Fatal("nothing returned, something written")
			}
			return
		}
		if err := pkt.Check(pk.Data); err != nil {
			t.Fatal(err)
		}
		l4 := 20
		if p.Version == 6 {
			l4 = 40
		}
		if word := binary.BigEndian.Uint32(pk.Data[l4+4:]); packet.ICMPError(e) == packet.FragNeeded && word != uint32(mtu) {
			t.Fatalf("MTU %d, want %d", word, mtu)
		}
	})
}
