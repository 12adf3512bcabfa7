package pkt_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var families = [][2]netip.AddrPort{
	{netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:2000")},
	{netip.MustParseAddrPort("[fd00::1]:1000"), netip.MustParseAddrPort("[fd00::2]:2000")},
}

// What is built here is right by gVisor's own checks, so that a test that
// fails means the code under test.
func TestBuildersAgainstGVisor(t *testing.T) {
	for _, f := range families {
		src, dst := tcpip.AddrFromSlice(f[0].Addr().AsSlice()), tcpip.AddrFromSlice(f[1].Addr().AsSlice())
		for n := range 9 {
			payload := []byte("payload!!")[:n]
			b := pkt.Opts{TCPOptions: pkt.MSS(1400)}.TCP(f[0], f[1], packet.SYN, 1, 2, payload)
			l4 := len(b) - n - 24
			if l4 == 20 && (!header.IPv4(b).IsValid(len(b)) || !header.IPv4(b).IsChecksumValid()) ||
				l4 == 40 && !header.IPv6(b).IsValid(len(b)) {
				t.Errorf("%v: IP header is not valid", f)
			}
			if !header.TCP(b[l4:]).IsChecksumValid(src, dst, checksum.Checksum(payload, 0), uint16(n)) {
				t.Errorf("%v: TCP checksum with %d bytes", f, n)
			}
			b = pkt.UDP(f[0], f[1], payload)
			if !header.UDP(b[len(b)-n-8:]).IsChecksumValid(src, dst, checksum.Checksum(payload, 0)) {
				t.Errorf("%v: UDP checksum with %d bytes", f, n)
			}
			for _, whole := range [][]byte{b, pkt.Echo(f[0].Addr(), f[1].Addr(), 1, 2, pkt.Reply, payload)} {
				if err := pkt.Check(whole); err != nil {
					t.Errorf("%v: %v", f, err)
				}
				whole[len(whole)-1]++
				if pkt.Check(whole) == nil {
					t.Errorf("%v: Check does not see a corrupt byte", f)
				}
			}
		}
	}
}

// The kernel completes a partial checksum by adding up from CsumStart on.
func TestPartial(t *testing.T) {
	for _, f := range families {
		for _, whole := range [][]byte{
			pkt.TCP(f[0], f[1], packet.ACK, 1, 2, []byte("odd")), pkt.UDP(f[0], f[1], []byte("even")),
		} {
			p := pkt.Partial(whole)
			l4 := p.Data[p.GSO.CsumStart:]
			binary.BigEndian.PutUint16(l4[p.GSO.CsumOffset:], ^uint16(pkt.Sum(l4)))
			if !bytes.Equal(p.Data, whole) {
				t.Errorf("%v: completed\n%x, want\n%x", f, p.Data, whole)
			}
			s := pkt.Super(whole, 2)
			if s.GSO.Type == packet.GSONone || s.GSO.Size != 2 || int(s.GSO.HdrLen) >= len(whole) {
				t.Errorf("%v: %+v", f, s.GSO)
			}
		}
	}
}

// Fragments put one behind the other are the packet again.
func TestFragments(t *testing.T) {
	for i, f := range families {
		whole := pkt.Opts{MayFragment: true, ID: 3}.UDP(f[0], f[1], make([]byte, 1000))
		front, hdr := 20, 20
		if i == 1 {
			front, hdr = 48, 40
		}
		var body []byte
		for _, part := range pkt.Fragments(whole, 300, 9) {
			if len(part) > 300 {
				t.Errorf("fragment of %d bytes", len(part))
			}
			if err := pkt.Check(part); err != nil {
				t.Error(err)
			}
			body = append(body, part[front:]...)
		}
		if !bytes.Equal(body, whole[hdr:]) {
			t.Errorf("%v: put together, another packet", f)
		}
	}
}

func TestOf(t *testing.T) {
	b := packet.NewBatch()
	s := pkt.Super(pkt.TCP(families[0][0], families[0][1], packet.ACK, 1, 2, make([]byte, 100)), 10)
	s.Port = 4
	p := pkt.OfPacket(b, s)
	if pkt.Of(b, []byte("x")); len(b.Packets) != 2 || p.GSO != s.GSO || p.Port != 4 || &p.Data[0] == &s.Data[0] {
		t.Errorf("batch holds %+v", b.Packets)
	}
}
