package device

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// writeAll sends packets through a group with one port and returns what the
// kernel gets.
func writeAll(t testing.TB, front int, pkts ...packet.Packet) []packet.Packet {
	t.Helper()
	g := newGroup(t, Config{})
	tun, w := newWire(t, front)
	add(t, g, 1, tun)
	b := NewBatch()
	for _, p := range pkts {
		p.Port = 1
		pkt.OfPacket(b, p)
	}
	g.Write(b)
	return w.get(front)
}

func plain(data []byte) packet.Packet { return packet.Packet{Data: data} }

// seg is the i-th segment of 100 bytes of a TCP flow.
func seg(o pkt.Opts, flags uint8, i int) packet.Packet {
	o.ID = uint16(1000 + i)
	return plain(o.TCP(client4, server4, flags, uint32(1+100*i), 1, bytes.Repeat([]byte{byte(i)}, 100)))
}

func seg6(o pkt.Opts, i int) packet.Packet {
	return plain(o.TCP(client6, server6, packet.ACK, uint32(1+100*i), 1, bytes.Repeat([]byte{byte(i)}, 100)))
}

func dgram(o pkt.Opts, i, size int) packet.Packet {
	o.ID = uint16(1000 + i)
	return plain(o.UDP(client4, server4, bytes.Repeat([]byte{byte(i)}, size)))
}

func TestG2_WhatMayMerge(t *testing.T) {
	const ack, psh = packet.ACK, packet.ACK | packet.PSH
	var none pkt.Opts
	corrupt := func(p packet.Packet) packet.Packet {
		p.Data = pkt.Edit(p.Data, func([]byte) {})
		p.Data[len(p.Data)-1] ^= 1
		return p
	}
	corruptHeader := func(p packet.Packet) packet.Packet {
		p.Data = append([]byte(nil), p.Data...)
		p.Data[10] ^= 1
		return p
	}
	ts := func(n byte) pkt.Opts { return pkt.Opts{TCPOptions: []byte{1, 1, 8, 10, 0, 0, 0, n, 0, 0, 0, 1}} }
	verified := func(p packet.Packet) packet.Packet {
		p.GSO.Verified = true
		return p
	}
	sized := func(i, size int) packet.Packet {
		return plain(pkt.Opts{ID: uint16(1000 + i)}.TCP(client4, server4, ack, uint32(1+100*i), 1, make([]byte, size)))
	}
	all := func(p ...packet.Packet) []packet.Packet { return p }
	frag := pkt.Fragments(pkt.Opts{MayFragment: true, ID: 1001}.UDP(client4, server4, make([]byte, 3000)), 1500, 0)
	tests := []struct {
		name string
		in   []packet.Packet
		want []int // packets in each write
	}{
		{"consecutive segments", all(seg(none, ack, 0), seg(none, ack, 1), seg(none, ack, 2)), []int{3}},
		{"IPv6", all(seg6(none, 0), seg6(none, 1)), []int{2}},
		{"a shorter one is the last", all(sized(0, 100), sized(1, 50), plain(pkt.TCP(client4, server4, ack, 151, 1, make([]byte, 100)))), []int{2, 1}},
		{"a longer one is not merged", all(sized(0, 100), sized(1, 101)), []int{1, 1}},
		{"PSH ends", all(seg(none, ack, 0), seg(none, psh, 1), seg(none, ack, 2), seg(none, ack, 3)), []int{2, 2}},
		{"PSH on the first", all(seg(none, psh, 0), seg(none, ack, 1)), []int{1, 1}},
		{"a hole", all(seg(none, ack, 0), seg(none, ack, 2)), []int{1, 1}},
		{"out of order", all(seg(none, ack, 1), seg(none, ack, 0)), []int{1, 1}},
		{"repeated", all(seg(none, ack, 0), seg(none, ack, 0)), []int{1, 1}},
		{"SYN", all(seg(none, ack|packet.SYN, 0), seg(none, ack, 1)), []int{1, 1}},
		{"FIN", all(seg(none, ack, 0), seg(none, ack|packet.FIN, 1)), []int{1, 1}},
		{"RST", all(seg(none, ack, 0), seg(none, ack|packet.RST, 1)), []int{1, 1}},
		{"URG", all(seg(none, ack, 0), seg(none, ack|packet.URG, 1)), []int{1, 1}},
		{"CWR", all(seg(none, ack, 0), seg(none, ack|packet.CWR, 1)), []int{1, 1}},
		{"ECE on all", all(seg(none, ack|packet.ECE, 0), seg(none, ack|packet.ECE, 1)), []int{2}},
		{"ECE on one", all(seg(none, ack, 0), seg(none, ack|packet.ECE, 1)), []int{1, 1}},
		{"no ACK", all(seg(none, 0, 0), seg(none, 0, 1)), []int{1, 1}},
		{"reserved bits", all(seg(pkt.Opts{Reserved: 1}, ack, 0), seg(pkt.Opts{Reserved: 1}, ack, 1)), []int{1, 1}},
		{"other acknowledgement", all(seg(none, ack, 0), plain(pkt.TCP(client4, server4, ack, 101, 2, make([]byte, 100)))), []int{1, 1}},
		{"other window", all(seg(none, ack, 0), seg(pkt.Opts{Window: 100}, ack, 1)), []int{1, 1}},
		{"other DSCP", all(seg(none, ack, 0), seg(pkt.Opts{TOS: 0x20}, ack, 1)), []int{1, 1}},
		{"other ECN", all(seg(pkt.Opts{TOS: 2}, ack, 0), seg(pkt.Opts{TOS: 3}, ack, 1)), []int{1, 1}},
		{"other TTL", all(seg(none, ack, 0), seg(pkt.Opts{TTL: 63}, ack, 1)), []int{1, 1}},
		{"other DF", all(seg(none, ack, 0), seg(pkt.Opts{MayFragment: true}, ack, 1)), []int{1, 1}},
		{"same options", all(seg(ts(1), ack, 0), seg(ts(1), ack, 1)), []int{2}},
		{"other options", all(seg(ts(1), ack, 0), seg(ts(2), ack, 1)), []int{1, 1}},
		{"options on one", all(seg(none, ack, 0), seg(ts(2), ack, 1)), []int{1, 1}},
		{"IPv4 options", all(seg(pkt.Opts{IPOptions: []byte{1, 1, 1, 1}}, ack, 0), seg(pkt.Opts{IPOptions: []byte{1, 1, 1, 1}}, ack, 1)), []int{1, 1}},
		{"without DF the identification counts", all(seg(pkt.Opts{MayFragment: true}, ack, 0), seg(pkt.Opts{MayFragment: true}, ack, 1)), []int{2}},
		{"without DF the identification jumps", all(seg(pkt.Opts{MayFragment: true}, ack, 0), plain(pkt.Opts{MayFragment: true, ID: 7}.TCP(client4, server4, ack, 101, 1, make([]byte, 100)))), []int{1, 1}},
		{"other flow label", all(seg6(none, 0), seg6(pkt.Opts{Flow: 1}, 1)), []int{1, 1}},
		{"other traffic class", all(seg6(none, 0), seg6(pkt.Opts{TOS: 4}, 1)), []int{1, 1}},
		{"other hop limit", all(seg6(none, 0), seg6(pkt.Opts{TTL: 9}, 1)), []int{1, 1}},
		{"pure acknowledgements", all(sized(0, 0), sized(0, 0)), []int{1, 1}},
		{"wrong checksum", all(seg(none, ack, 0), corrupt(seg(none, ack, 1)), seg(none, ack, 2)), []int{1, 1, 1}},
		{"wrong checksum on the first", all(corrupt(seg(none, ack, 0)), seg(none, ack, 1), seg(none, ack, 2)), []int{1, 2}},
		{"wrong IPv4 header checksum", all(seg(none, ack, 0), corruptHeader(seg(none, ack, 1)), seg(none, ack, 2)), []int{1, 1, 1}},
		{"someone verified it", all(verified(seg(none, ack, 0)), verified(seg(none, ack, 1))), []int{2}},
		{"partial checksums", all(pkt.Partial(seg(none, ack, 0).Data), pkt.Partial(seg(none, ack, 1).Data)), []int{2}},
		{"partial beside complete", all(pkt.Partial(seg(none, ack, 0).Data), seg(none, ack, 1)), []int{2}},
		{"interleaved flows", all(seg(none, ack, 0), seg6(none, 0), seg(none, ack, 1), seg6(none, 1)), []int{2, 2}},
		{"super-packet in between", all(seg(none, ack, 0), pkt.Super(pkt.TCP(client4, server4, ack, 101, 1, make([]byte, 300)), 100), plain(pkt.TCP(client4, server4, ack, 401, 1, make([]byte, 100)))), []int{1, 3, 1}},

		{"datagrams", all(dgram(none, 0, 100), dgram(none, 1, 100), dgram(none, 2, 40)), []int{3}},
		{"datagrams after a shorter one", all(dgram(none, 0, 100), dgram(none, 1, 40), dgram(none, 2, 40)), []int{2, 1}},
		{"a longer datagram", all(dgram(none, 0, 100), dgram(none, 1, 101)), []int{1, 1}},
		{"empty datagrams", all(dgram(none, 0, 0), dgram(none, 1, 0)), []int{1, 1}},
		{"an empty datagram ends", all(dgram(none, 0, 10), dgram(none, 1, 0), dgram(none, 2, 10)), []int{1, 1, 1}},
		{"UDP without checksum", all(dgram(pkt.Opts{NoChecksum: true}, 0, 10), dgram(pkt.Opts{NoChecksum: true}, 1, 10)), []int{1, 1}},
		{"UDP with a wrong checksum", all(dgram(none, 0, 10), corrupt(dgram(none, 1, 10))), []int{1, 1}},
		{"a fragment is not passed", all(dgram(none, 0, 10), plain(frag[0]), plain(frag[1]), dgram(none, 1, 10)), []int{1, 1, 1, 1}},
		{"ping", all(seg(none, ack, 0), plain(pkt.Echo(client4.Addr(), server4.Addr(), 1, 1, pkt.Request, nil)), seg(none, ack, 1)), []int{1, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := writeAll(t, vnetLen, tt.in...)
			var runs []int
			for i := range got {
				runs = append(runs, len(segments(t, got[i:i+1])))
			}
			if fmt.Sprint(runs) != fmt.Sprint(tt.want) {
				t.Errorf("written as %v packets, want %v", runs, tt.want)
			}
			sameFlows(t, tt.in, got)
		})
	}
}

// sameFlows checks that every flow has the same packets in the same order in
// both, bit for bit.
func sameFlows(t testing.TB, in, out []packet.Packet) {
	t.Helper()
	split := func(pkts []packet.Packet) map[string][][]byte {
		m := map[string][][]byte{}
		for _, b := range segments(t, pkts) {
			k := "malformed"
			switch {
			case len(b) >= 48 && b[0]>>4 == 6:
				k = string(b[6:7]) + string(b[8:44])
			case len(b) >= 28 && b[0]>>4 == 4 && int(b[2])<<8|int(b[3]) == len(b):
				k = string(b[9:10]) + string(b[12:24])
			}
			m[k] = append(m[k], normal(b))
		}
		return m
	}
	a, b := split(in), split(out)
	if len(a) != len(b) {
		t.Errorf("%d flows went in, %d came out", len(a), len(b))
	}
	for k, want := range a {
		got := b[k]
		if len(got) != len(want) {
			t.Errorf("flow %x: %d packets went in, %d came out", k, len(want), len(got))
			continue
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("flow %x: packet %d changed\n got %x\nwant %x", k, i, got[i], want[i])
				break
			}
		}
	}
}

func TestG3_LongTrains(t *testing.T) {
	// 120 datagrams of 500 bytes are 60 kB, but a kernel before 6.9 takes 64 of
	// them at a time.
	var in []packet.Packet
	for i := range 120 {
		in = append(in, dgram(pkt.Opts{}, i, 500))
	}
	got := writeAll(t, vnetLen, in...)
	if len(got) != 2 {
		t.Errorf("120 datagrams became %d writes, want 2", len(got))
	}
	sameFlows(t, in, got)
	// 64 KiB is the limit of a TCP train: 46 full segments fit.
	in = nil
	for i := range 110 {
		in = append(in, plain(pkt.TCP(client6, server6, packet.ACK, uint32(0xffff0000+1400*i), 1, make([]byte, 1400))))
	}
	got = writeAll(t, vnetLen, in...)
	if len(got) != 3 {
		t.Errorf("110 segments became %d writes, want 3", len(got))
	}
	sameFlows(t, in, got)
}

func TestG5_MoreFlowsThanTrains(t *testing.T) {
	for _, flows := range []int{maxTrains, maxTrains + 8} {
		var in []packet.Packet
		for i := range 96 {
			src := netip.AddrPortFrom(client6.Addr(), uint16(1000+i%flows))
			n := i / flows
			in = append(in, plain(pkt.TCP(src, server6, packet.ACK, uint32(1+100*n), 1, bytes.Repeat([]byte{byte(n)}, 100))))
		}
		got := writeAll(t, vnetLen, in...)
		sameFlows(t, in, got)
		if flows == maxTrains && len(got) != flows {
			t.Errorf("%d flows became %d writes: every flow has a train", flows, len(got))
		}
	}
}

func TestG1_WithoutOffloadsTheWireSeesTheSamePackets(t *testing.T) {
	in := []packet.Packet{
		pkt.Super(pkt.TCP(client4, server4, packet.ACK|packet.PSH|packet.FIN|packet.CWR, 1, 1, make([]byte, 5000)), 1400),
		pkt.Super(pkt.TCP(client6, server6, packet.ACK, 1, 1, make([]byte, 60000)), 1380),
		pkt.Super(pkt.UDP(client4, server4, make([]byte, 5000)), 1200),
		pkt.Partial(pkt.TCP(client6, server6, packet.SYN, 1, 0, nil)),
		pkt.Partial(pkt.UDP(client6, server6, []byte("query"))),
		plain(pkt.UDP(client4, server6v4, []byte("plain"))),
	}
	with, without := writeAll(t, vnetLen, in...), writeAll(t, 0, in...)
	if len(with) != len(in) {
		t.Errorf("with offloads: %d writes for %d packets", len(with), len(in))
	}
	want := segments(t, in)
	if len(without) != len(want) {
		t.Fatalf("without offloads: %d writes, want %d wire packets", len(without), len(want))
	}
	for i := range without {
		if !bytes.Equal(without[i].Data, want[i]) {
			t.Errorf("wire packet %d differs\n got %x\nwant %x", i, without[i].Data, want[i])
		}
		if err := pkt.Check(without[i].Data); err != nil {
			t.Errorf("wire packet %d: %v", i, err)
		}
	}
	sameFlows(t, with, without)
}

var server6v4 = netip.MustParseAddrPort("10.0.1.8:53")

// FuzzCoalesce turns the input into a train wreck: segments and datagrams of a
// few flows, some of them spoilt, in one batch. What the kernel gets must cut
// into exactly the packets that went in, flow by flow.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(bytes.Repeat([]byte{0, 0, 0, 3}, 40))
	f.Add(bytes.Repeat([]byte{0, 0, 1, 0, 2, 0, 3, 0}, 16))
	f.Add([]byte{0, 0, 0, 1, 0, 2, 0, 3, 0, 64, 0, 65, 0, 66, 0, 0})
	rng := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		b := make([]byte, 120)
		for i := range b {
			b[i] = byte(rng.UintN(256))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		pkts := wreck(in)
		sameFlows(t, pkts, writeAll(t, vnetLen, pkts...))
	})
}

// wreck makes packets out of two bytes each: which flow and size, and what is
// wrong with it.
func wreck(in []byte) []packet.Packet {
	var out []packet.Packet
	var seq [4]uint32
	sizes := [4]int{100, 100, 60, 9}
	for i := 0; i+1 < len(in) && len(out) < 100; i += 2 {
		flow, size, what := int(in[i]&3), sizes[in[i]>>2&3], in[i+1]
		o := pkt.Opts{ID: uint16(len(out))}
		flags := uint8(packet.ACK)
		switch what & 0xf {
		case 1:
			flags |= packet.PSH
		case 2:
			flags |= packet.FIN
		case 3:
			flags |= packet.CWR
		case 4:
			o.TOS = 3
		case 5:
			o.TTL = 7
		case 6:
			o.MayFragment = true
		case 7:
			o.TCPOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1}
		case 8:
			seq[flow] += 3
		case 9:
			o.Window = 9
		case 10:
			size = 0
		case 11:
			o.NoChecksum = flow == 2 // IPv4
		case 12:
			flags |= packet.ECE
		}
		payload := bytes.Repeat([]byte{byte(i)}, size)
		var p packet.Packet
		switch flow {
		case 0:
			p = plain(o.TCP(client4, server4, flags, seq[flow], 1, payload))
		case 1:
			p = plain(o.TCP(client6, server6, flags, seq[flow], 1, payload))
		case 2:
			p = plain(o.UDP(client4, server4, payload))
		case 3:
			p = plain(o.UDP(client6, server6, payload))
		}
		seq[flow] += uint32(size)
		switch what >> 4 {
		case 1:
			p.Data[len(p.Data)-1] ^= 0x55 // whoever sees it must see it so
		case 2:
			p.Data[len(p.Data)/2] ^= 1
		case 3:
			p.GSO.Verified = true
		case 4:
			if !o.NoChecksum {
				p = pkt.Partial(p.Data)
			}
		case 5:
			p.Data[2] ^= 1 // a length that is not the packet's
		}
		out = append(out, p)
	}
	return out
}
