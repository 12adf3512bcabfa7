package packet_test

import (
	"testing"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// frag4 is an IPv4 fragment with the given flags-and-offset word.
func frag4(proto uint8, word uint16, body []byte) []byte {
	return edit(pkt.Opts{ID: 7}.Raw(c4.Addr(), s4.Addr(), proto, body), 6, be(word)...)
}

// frag6 is an IPv6 fragment: word as in the fragment header, offset in bytes.
func frag6(next uint8, word uint16, body []byte) []byte {
	ext := append([]byte{next, 0}, be(word)...)
	ext = append(ext, 0, 0, 0, 7)
	return pkt.Opts{Extensions: ext, First: 44}.Raw(c6.Addr(), s6.Addr(), next, body)
}

func TestF1_FragmentsRecognised(t *testing.T) {
	for _, v := range []int{4, 6} {
		c, s := ends(v)
		for name, whole := range map[string][]byte{
			"tcp":  pkt.Opts{ID: 7, MayFragment: true}.TCP(c, s, packet.ACK, 1, 2, data(3000)),
			"udp":  pkt.Opts{ID: 7, MayFragment: true}.UDP(c, s, data(3000)),
			"echo": pkt.Opts{ID: 7, MayFragment: true}.Echo(c.Addr(), s.Addr(), 9, 1, pkt.Request, data(3000)),
		} {
			off := 0
			parts := pkt.Fragments(whole, 1280, 7)
			for i, f := range parts {
				p, r := parse(t, f)
				if r != packet.OK {
					t.Fatalf("IPv%d %s fragment %d: %v", v, name, i, r)
				}
				last := i == len(parts)-1
				if !p.Fragment || p.More == last || int(p.FragOff) != off || p.FragID != 7 || p.Transport != (i == 0) {
					t.Errorf("IPv%d %s fragment %d: %+v", v, name, i, p)
				}
				if i == 0 && name != "echo" && p.SrcPort != c.Port() {
					t.Errorf("IPv%d %s: first fragment shows no ports", v, name)
				}
				if i > 0 && (p.SrcPort != 0 || p.DstPort != 0) {
					t.Errorf("IPv%d %s: later fragment shows ports", v, name)
				}
				if p.VerifyChecksum() != packet.OK {
					t.Errorf("IPv%d %s: checksum of a fragment cannot be judged", v, name)
				}
				off += len(p.Data) - int(p.L4)
			}
			if len(parts) < 3 {
				t.Fatalf("only %d fragments", len(parts))
			}
		}
	}
}

func TestF3_FirstFragmentHoldsTheHeader(t *testing.T) {
	tcp := pkt.Opts{TCPOptions: pkt.MSS(1000)}.TCP(c4, s4, packet.SYN, 1, 0, data(40))[20:]
	const mf = 0x2000
	runRows(t, []row{
		{"TCP whole with options", frag4(6, mf, tcp[:24]), packet.OK},
		{"TCP 16 bytes", frag4(6, mf, tcp[:16]), packet.FragmentRefused},
		{"TCP options cut", frag4(6, mf, edit(tcp, 12, 0x80)[:24]), packet.FragmentRefused},
		{"TCP at offset 8", frag4(6, mf|1, tcp[:16]), packet.FragmentRefused},
		{"TCP at offset 16", frag4(6, 2, tcp[:16]), packet.FragmentRefused},
		{"TCP at offset 24", frag4(6, 3, tcp[:16]), packet.OK},
		{"UDP at offset 8", frag4(17, 1, data(16)), packet.OK},
		{"UDP 8 bytes", frag4(17, mf, []byte{0, 53, 0, 53, 1, 0, 0, 0}), packet.OK},
		{"UDP shorter than its first fragment", frag4(17, mf, []byte{0, 53, 0, 53, 0, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}), packet.FragmentRefused},
		{"unsupported", frag4(47, mf, data(16)), packet.UnsupportedProtocol},
		{"unsupported, later", frag4(47, 2, data(16)), packet.UnsupportedProtocol},
	})
}

func TestF5_ImpossibleFragments(t *testing.T) {
	const mf = 0x2000
	runRows(t, []row{
		{"ping of death", frag4(1, 0x1fff, data(100)), packet.FragmentRefused},
		{"last byte 65535", frag4(17, 8188, data(65535-20-8188*8)), packet.OK},
		{"one behind it", frag4(17, 8188, data(65536-20-8188*8)), packet.FragmentRefused},
		{"more to come, not a multiple of 8", frag4(17, mf, data(15)), packet.FragmentRefused},
		{"empty", frag4(17, 5, nil), packet.FragmentRefused},
		{"empty, more to come", frag4(17, mf|5, nil), packet.FragmentRefused},
		{"v6 too long", frag6(17, 0xfff8, data(8)), packet.FragmentRefused},
		{"v6 last byte 65535", frag6(17, 0xfff8, data(7)), packet.OK},
		{"v6 not a multiple of 8", frag6(17, 8|1, data(15)), packet.FragmentRefused},
		{"v6 empty", frag6(17, 8, nil), packet.FragmentRefused},
	})
}

func TestF6_AtomicFragment(t *testing.T) {
	udp := pkt.UDP(c6, s6, []byte("alone"))[40:]
	p, r := parse(t, frag6(17, 0, udp))
	if r != packet.OK || p.Fragment || !p.Transport || p.FragHdr != 40 || p.DstPort != s6.Port() {
		t.Errorf("atomic fragment: %v %+v", r, p)
	}
	if r := p.VerifyChecksum(); r != packet.OK {
		t.Errorf("its checksum covers all of it: %v", r)
	}
}

func TestF7_HeaderChainInFirstFragment(t *testing.T) {
	tcp := pkt.TCP(c6, s6, packet.SYN, 1, 0, data(12))[40:]
	dest := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	runRows(t, []row{
		{"whole", frag6(60, 1, append(append([]byte(nil), dest...), tcp[:32]...)), packet.OK},
		{"TCP cut", frag6(60, 1, append(append([]byte(nil), dest...), tcp[:16]...)), packet.FragmentRefused},
		{"nothing behind the options", frag6(60, 1, dest), packet.FragmentRefused},
		{"options cut", frag6(60, 1, append([]byte{6, 1, 1, 4}, 0, 0, 0, 0)), packet.FragmentRefused},
		{"later fragment of such a datagram", frag6(60, 48, data(8)), packet.OK},
		{"TCP at offset 8", frag6(6, 8, data(8)), packet.FragmentRefused},
		{"two fragment headers", frag6(44, 1, append([]byte{6, 0, 0, 1, 0, 0, 0, 9}, tcp[:32]...)), packet.BadExtension},
		{"later fragment of ESP", frag6(50, 48, data(8)), packet.UnsupportedProtocol},
	})
	p, _ := parse(t, frag6(60, 48, data(8)))
	if p.Transport || p.Proto != 60 || p.L4 != 48 || p.FragOff != 48 {
		t.Errorf("later fragment: %+v", p)
	}
}

// Fragments whose datagram's tracker has to give up are still named.
func TestFragmentRefusedIsNamed(t *testing.T) {
	p, r := parse(t, frag4(6, 1, data(16)))
	if r != packet.FragmentRefused || p.FragID != 7 || p.Src != packet.AddrFrom(c4.Addr()) || p.Proto != 6 {
		t.Errorf("%v: %+v", r, p)
	}
	p, r = parse(t, frag6(6, 8, data(16)))
	if r != packet.FragmentRefused || p.FragID != 7 || p.Src != packet.AddrFrom(c6.Addr()) || p.Proto != 6 {
		t.Errorf("%v: %+v", r, p)
	}
}
