package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

func TestE5_DecrementTTL(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		for ttl := range 256 {
			whole := pkt.Opts{TTL: uint8(ttl), ZeroTTL: ttl == 0}.UDP(c, s, data(5))
			p := mustParse(t, &packet.Packet{Data: append([]byte(nil), whole...)})
			r := p.DecrementTTL()
			if ttl <= 1 {
				if r != packet.TTLExceeded || int(p.TTL) != ttl || !bytes.Equal(p.Data, whole) {
					t.Errorf("IPv%d TTL %d: %v, TTL now %d", v, ttl, r, p.TTL)
				}
				continue
			}
			want := pkt.Opts{TTL: uint8(ttl - 1)}.UDP(c, s, data(5))
			if r != packet.OK || int(p.TTL) != ttl-1 || !bytes.Equal(p.Data, want) {
				t.Errorf("IPv%d TTL %d: %v\n%x, want\n%x", v, ttl, r, p.Data, want)
			}
		}
	}
}

// TestM5_ClampMSS compares with a packet that was built with the lower MSS.
func TestM5_ClampMSS(t *testing.T) {
	sack := []byte{4, 2}
	ts := []byte{8, 10, 1, 2, 3, 4, 0, 0, 0, 0}
	join := func(p ...[]byte) []byte { return bytes.Join(p, nil) }
	for _, tc := range []struct {
		name  string
		flags uint8
		opts  []byte
		max   uint16
		want  []byte
	}{
		{"lowered", packet.SYN, pkt.MSS(1460), 1380, pkt.MSS(1380)},
		{"on SYN-ACK", packet.SYN | packet.ACK, pkt.MSS(1460), 1380, pkt.MSS(1380)},
		{"never raised", packet.SYN, pkt.MSS(536), 1380, pkt.MSS(536)},
		{"equal", packet.SYN, pkt.MSS(1380), 1380, pkt.MSS(1380)},
		{"not on others", packet.ACK, pkt.MSS(1460), 1380, pkt.MSS(1460)},
		{"absent is left", packet.SYN, sack, 1380, sack},
		{"no options", packet.SYN, nil, 1380, nil},
		{"behind others", packet.SYN, join(sack, ts, pkt.MSS(1460)), 1380, join(sack, ts, pkt.MSS(1380))},
		{"odd alignment", packet.SYN, join([]byte{1}, pkt.MSS(0xfffe)), 0x1234, join([]byte{1}, pkt.MSS(0x1234))},
		{"odd behind a window scale", packet.SYN, join([]byte{3, 3, 7}, pkt.MSS(9000)), 1380, join([]byte{3, 3, 7}, pkt.MSS(1380))},
		{"twice", packet.SYN, join(pkt.MSS(1460), pkt.MSS(9000)), 1380, join(pkt.MSS(1380), pkt.MSS(1380))},
		{"behind the end of the list", packet.SYN, join([]byte{0, 0, 0, 0}, pkt.MSS(1460)), 1380, join([]byte{0, 0, 0, 0}, pkt.MSS(1460))},
		{"wrong length 3", packet.SYN, []byte{2, 3, 5}, 1, []byte{2, 3, 5}},
		{"wrong length 6", packet.SYN, []byte{2, 6, 5, 5, 5, 5}, 1, []byte{2, 6, 5, 5, 5, 5}},
		{"length 0", packet.SYN, join([]byte{8, 0}, pkt.MSS(1460)), 1380, join([]byte{8, 0}, pkt.MSS(1460))},
		{"length behind the header", packet.SYN, []byte{8, 40, 2, 4}, 1, []byte{8, 40, 2, 4}},
		{"cut by the header", packet.SYN, []byte{1, 2, 4, 5}, 1, []byte{1, 2, 4, 5}},
		{"kind without length", packet.SYN, []byte{1, 1, 1, 2}, 1, []byte{1, 1, 1, 2}},
		{"full of options", packet.SYN, join(bytes.Repeat([]byte{1}, 36), pkt.MSS(1460)), 1380, join(bytes.Repeat([]byte{1}, 36), pkt.MSS(1380))},
	} {
		for _, v := range []int{4, 6} {
			c, s := ends(v)
			from := pkt.Opts{TCPOptions: tc.opts}.TCP(c, s, tc.flags, 7, 9, []byte("early"))
			to := pkt.Opts{TCPOptions: tc.want}.TCP(c, s, tc.flags, 7, 9, []byte("early"))
			p := mustParse(t, &packet.Packet{Data: from})
			p.ClampMSS(tc.max)
			if !bytes.Equal(p.Data, to) {
				t.Errorf("IPv%d %s:\n%x, want\n%x", v, tc.name, p.Data, to)
			}
			pk := pkt.Partial(pkt.Opts{TCPOptions: tc.opts}.TCP(c, s, tc.flags, 7, 9, []byte("early")))
			mustParse(t, &pk).ClampMSS(tc.max)
			if want := pkt.Partial(to); !bytes.Equal(pk.Data, want.Data) {
				t.Errorf("IPv%d %s, partial checksum:\n%x, want\n%x", v, tc.name, pk.Data, want.Data)
			}
		}
	}
}

// A SYN in a first fragment is clamped too; its checksum covers bytes that are
// not here, and stays right because the update is incremental.
func TestM5_ClampMSSInFirstFragment(t *testing.T) {
	build := func(mss uint16) [][]byte {
		return pkt.Fragments(pkt.Opts{MayFragment: true, TCPOptions: pkt.MSS(mss)}.TCP(c4, s4, packet.SYN, 7, 0, data(100)), 68, 0)
	}
	p := mustParse(t, &packet.Packet{Data: build(1460)[0]})
	p.ClampMSS(1200)
	if want := build(1200)[0]; !bytes.Equal(p.Data, want) {
		t.Errorf("\n%x, want\n%x", p.Data, want)
	}
}

// UDP on the same bytes is not TCP.
func TestM5_ClampMSSOnlyTCP(t *testing.T) {
	whole := pkt.UDP(c4, s4, bytes.Repeat([]byte{2, 4, 0xff, 0xff}, 10))
	p := mustParse(t, &packet.Packet{Data: append([]byte(nil), whole...)})
	p.Flags = packet.SYN
	p.ClampMSS(100)
	if !bytes.Equal(p.Data, whole) {
		t.Error("a UDP payload was changed")
	}
	if binary.BigEndian.Uint16(whole[24:]) != 48 {
		t.Error("not the datagram this test means")
	}
}
