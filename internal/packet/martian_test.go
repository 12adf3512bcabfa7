package packet_test

import (
	"net/netip"
	"testing"

	"github.com/fe919326/spillway/internal/packet"
)

func TestMartian(t *testing.T) {
	for a, want := range map[string]bool{
		// Z2
		"0.0.0.0": true, "0.255.255.255": true, "1.0.0.0": false,
		"126.255.255.255": false, "127.0.0.1": true, "128.0.0.0": false,
		"169.253.255.255": false, "169.254.0.0": true, "169.254.169.254": true, "169.255.0.0": false,
		"192.0.0.1": false, "192.0.0.8": true, "192.0.0.9": false, "192.0.0.192": true, "192.0.1.0": false,
		"192.0.2.1": false, "198.51.100.1": false, "198.18.0.1": false,
		"223.255.255.255": false, "224.0.0.0": true, "239.1.1.1": true, "240.0.0.1": true, "255.255.255.255": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "100.112.0.1": false, "8.8.8.8": false,
		// V5
		"::": true, "::1": true, "::10.0.0.1": true, "::ffff:0:10.0.0.1": true,
		"fe7f::1": false, "fe80::1": true, "febf::1": true, "fec0::1": true, "feff::1": true,
		"ff02::1": true, "ff0e::1": true,
		"fd00:1::1": false, "fc00::1": false, "2001:db8::1": false, "2600::1": false, "2001:4860:4860::8888": false,
		"2002:0a00:0001::1": true, "2002:7f00:0001::1": true, "2002:c0a8:0101::1": true, "2002:ac10:0001::1": true,
		"2002:6440:0001::1": true, "2002:0808:0808::1": false,
		"64:ff9b::10.0.0.1": true, "64:ff9b::169.254.169.254": true, "64:ff9b::8.8.8.8": false, "64:ff9b::127.0.0.1": true,
		"2001:0:0a00:1::f7f7:f7f7":    true,  // Teredo, private server
		"2001:0:0808:0808::f5ff:fffe": true,  // Teredo, client 10.0.0.1
		"2001:0:0808:0808::f7f7:f7f7": false, // Teredo, client 8.8.8.8
	} {
		if got := packet.IsMartian(packet.AddrFrom(netip.MustParseAddr(a))); got != want {
			t.Errorf("IsMartian(%s) = %v, want %v", a, got, want)
		}
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"10.0.0.1", "0.0.0.0", "fd00::1", "::"} {
		a := netip.MustParseAddr(s)
		if got := packet.ToNetip(packet.AddrFrom(a)); got != a {
			t.Errorf("there and back: %v, want %v", got, a)
		}
		addr := packet.AddrFrom(a)
		if packet.Is4(&addr) != a.Is4() {
			t.Errorf("Is4(%v) = %v", a, packet.Is4(&addr))
		}
	}
	if a := packet.AddrFrom(netip.MustParseAddr("fe80::1%eth0")); packet.ToNetip(a).Zone() != "" {
		t.Error("a zone survived")
	}
	if packet.AddrFrom(netip.Addr{}) != (packet.Addr{}) {
		t.Error("the zero netip.Addr is not the zero Addr")
	}
}
