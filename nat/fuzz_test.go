package nat

import (
	"bytes"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// zeroForm makes the two forms of zero in a TCP, ICMP or IPv4 header checksum
// equal: 0xFFFF is what no sender computes, and it does not survive an update.
func zeroForm(p *packet.Parsed, data []byte) []byte {
	out := bytes.Clone(data)
	norm := func(i int) {
		if out[i] == 0xFF && out[i+1] == 0xFF {
			out[i], out[i+1] = 0, 0
		}
	}
	if p.Version == 4 {
		norm(10)
	}
	if p.Transport && p.Proto != protoUDP {
		norm(int(p.L4) + sumOffset(p.Proto))
	}
	return out
}

// FuzzRewrite rewrites any packet that Parse accepts, there and back: what was
// right stays right, what was wrong stays wrong, and nothing but addresses,
// ports and checksums changes.
func FuzzRewrite(f *testing.F) {
	for _, a := range families {
		f.Add(pkt.TCP(at(a.task, 1), at(a.server, 2), packet.ACK, 1, 2, []byte("abc")), uint16(50000))
		f.Add(pkt.UDP(at(a.task, 1), at(a.server, 2), []byte("abc")), uint16(0))
		f.Add(pkt.Echo(a.task, a.server, 65535, 2, pkt.Request, nil), uint16(0))
		f.Add(pkt.Echo(a.task, a.server, 0, 2, pkt.Reply, nil), uint16(65535))
		f.Add(pkt.Fragments(pkt.Opts{MayFragment: true}.UDP(at(a.task, 1), at(a.server, 2), big(200)), 100, 1)[1], uint16(9))
	}
	f.Fuzz(func(t *testing.T, data []byte, port uint16) {
		var p packet.Parsed
		pk := packet.Packet{Data: bytes.Clone(data)}
		if p.Parse(&pk) != packet.OK {
			return
		}
		orig, before := bytes.Clone(p.Data), p
		right := pkt.Check(orig) == nil
		addr := packet.AddrFrom(out4)
		if p.Version == 6 {
			addr = packet.AddrFrom(out6)
		}
		for _, rw := range []struct {
			name string
			do   func(*packet.Parsed, packet.Addr, uint16)
			addr packet.Addr
			port uint16
		}{
			{"source", RewriteSource, before.Src, before.SrcPort},
			{"destination", RewriteDestination, before.Dst, before.DstPort},
		} {
			rw.do(&p, addr, port)
			if got := pkt.Check(p.Data) == nil; got != right {
				t.Fatalf("%s: right %v before, %v after\n%x\n%x", rw.name, right, got, orig, p.Data)
			}
			if len(p.Data) != len(orig) || changed(orig, p.Data) > 16+2+2+2 {
				t.Fatalf("%s: too much changed\n%x\n%x", rw.name, orig, p.Data)
			}
			rw.do(&p, rw.addr, rw.port)
			if !bytes.Equal(zeroForm(&before, p.Data), zeroForm(&before, orig)) {
				t.Fatalf("%s: not restored\nwas %x\nis  %x", rw.name, orig, p.Data)
			}
			if p.Src != before.Src || p.Dst != before.Dst || p.SrcPort != before.SrcPort || p.DstPort != before.DstPort {
				t.Fatalf("%s: Parsed not restored", rw.name)
			}
		}
	})
}

func changed(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// FuzzICMPError translates any readable error, for a flow made to fit it.
func FuzzICMPError(f *testing.F) {
	for _, a := range families {
		for _, k := range errorKinds(a) {
			for _, q := range quotedKinds(true) {
				for _, o := range headers(a, protoOf(a, q.name)) {
					b := q.build(at(a.outer, 50000), at(a.server, 443), o)
					f.Add(k.message(a.router, a.outer, b, min(len(b), 128), k.unit != 0))
				}
			}
		}
	}
	w := newWorld(f, flowtable.Config{MaxFlows: 64, Mode: flowtable.Liberal}, Config{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var p packet.Parsed
		pk := packet.Packet{Data: bytes.Clone(data)}
		if p.Parse(&pk) != packet.OK {
			return
		}
		k, r := EmbeddedTuple(&p)
		if r == packet.Undecided {
			t.Fatal("undecided")
		}
		if r != packet.OK {
			return
		}
		orig := bytes.Clone(p.Data)
		right := pkt.Check(orig) == nil
		inner := k
		inner.Src, inner.SrcPort = packet.AddrFrom(task4), k.SrcPort^0x5a5a
		if p.Version == 6 {
			inner.Src = packet.AddrFrom(task6)
		}
		if k.SrcPort == 0 && k.DstPort != 0 && (k.Proto == protoICMP || k.Proto == protoICMPv6) {
			return // about an echo reply that a task sent: tasks send none
		}
		var q quote
		if q.parse(&p) != packet.OK {
			t.Fatal("read once, refused the second time")
		}
		flow := flowtable.Flow{Inner: inner, Outside: k.Src, OutsidePort: k.SrcPort, Task: 1}
		ref, r := w.ft.Insert(&flow, &flowtable.Segment{Flags: packet.SYN, Seq: 1, Window: 100, Wire: 1, Bytes: 40}, start)
		if r != packet.OK {
			return // a tuple that cannot be a flow
		}
		defer w.ft.Remove(ref)
		r = RewriteErrorInboundMTU(&p, w.ft.Entry(ref), MTUFloor{V4: 68, V6: 1280})
		switch {
		case r != packet.OK:
			if !bytes.Equal(p.Data, orig) {
				t.Fatalf("refused with %v, but changed", r)
			}
			return
		case changed(orig, p.Data) > 16+16+2+2+2+2+2:
			t.Fatalf("too much changed\n%x\n%x", orig, p.Data)
		case (pkt.Check(p.Data) == nil) != right:
			t.Fatalf("right %v before, not after\n%x\n%x", right, orig, p.Data)
		}
		got, r := EmbeddedTuple(&p)
		if r != packet.OK || got != inner || p.Dst != inner.Src {
			t.Fatalf("translated to %+v, %v, for %x; want %+v", got, r, p.Dst, inner)
		}
	})
}
