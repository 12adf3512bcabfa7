package hostnet

import (
	"bytes"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	ourMAC   = [6]byte{2, 0, 0, 0, 0, 1}
	theirMAC = [6]byte{2, 0, 0, 0, 0, 2}
	us4      = netip.MustParseAddr("10.0.1.50")
	them4    = netip.MustParseAddr("10.0.1.20")
	us6      = netip.MustParseAddr("fd00:1::50")
	them6    = netip.MustParseAddr("fd00:1::20")
)

func TestParseFrame(t *testing.T) {
	unsolicited := advertFrame(multicastMAC(allNodes), theirMAC, us6, allNodes, false)
	lowHops := append([]byte(nil), unsolicited...)
	lowHops[14+7] = 254
	badSum := append([]byte(nil), unsolicited...)
	badSum[len(badSum)-1] ^= 1
	multicastSender := arpFrame(header.ARPRequest, broadcastMAC, [6]byte{1, 0, 0, 0, 0, 1}, [6]byte{}, them4, us4)
	for _, c := range []struct {
		name    string
		b       []byte
		want    frame
		claimed netip.Addr
	}{
		{"ARP request", arpFrame(header.ARPRequest, broadcastMAC, theirMAC, [6]byte{}, them4, us4), frame{whoHas, us4, them4, theirMAC}, them4},
		{"ARP probe", probeARP(theirMAC, us4), frame{kind: whoHas, target: us4, mac: theirMAC}, netip.Addr{}},
		{"ARP announcement", announceFrame(theirMAC, us4), frame{whoHas, us4, us4, theirMAC}, us4},
		{"ARP reply", arpFrame(header.ARPReply, ourMAC, theirMAC, ourMAC, us4, them4), frame{isHere, us4, us4, theirMAC}, us4},
		{"ND probe", probeND(theirMAC, us6), frame{kind: whoHas, target: us6, mac: theirMAC}, netip.Addr{}},
		{"ND announcement", unsolicited, frame{kind: isHere, target: us6, mac: theirMAC}, netip.Addr{}},
		{"ND from afar", lowHops, frame{}, netip.Addr{}},
		{"ND with a wrong checksum", badSum, frame{}, netip.Addr{}},
		{"ARP from a group", multicastSender, frame{}, netip.Addr{}},
		{"truncated ARP", probeARP(theirMAC, us4)[:40], frame{}, netip.Addr{}},
		{"truncated ND", probeND(theirMAC, us6)[:60], frame{}, netip.Addr{}},
		{"empty", nil, frame{}, netip.Addr{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, claimed := parseFrame(c.b)
			if got != c.want || claimed != c.claimed {
				t.Errorf("got %+v claiming %v, want %+v claiming %v", got, claimed, c.want, c.claimed)
			}
		})
	}
}

// The answers are what the standards ask for, and say what the question was.
func TestAnswerFrame(t *testing.T) {
	ask := func(b []byte) frame { f, _ := parseFrame(b); return f }
	arp := ask(arpFrame(header.ARPRequest, broadcastMAC, theirMAC, [6]byte{}, them4, us4))
	b := answerFrame(ourMAC, &arp)
	v := header.ARP(b[14:])
	if !bytes.Equal(b[:6], theirMAC[:]) || v.Op() != header.ARPReply || !bytes.Equal(v.HardwareAddressSender(), ourMAC[:]) ||
		!bytes.Equal(v.ProtocolAddressSender(), us4.AsSlice()) || !bytes.Equal(v.ProtocolAddressTarget(), them4.AsSlice()) || len(b) != 60 {
		t.Errorf("ARP reply: % x", b)
	}
	dad := ask(probeND(theirMAC, us6))
	b = answerFrame(ourMAC, &dad)
	group := multicastMAC(allNodes)
	na := header.NDPNeighborAdvert(header.ICMPv6(b[54:]).MessageBody())
	if !bytes.Equal(b[:6], group[:]) || na.SolicitedFlag() || !na.OverrideFlag() || na.RouterFlag() {
		t.Errorf("answer to duplicate address detection: % x", b)
	}
	solicit := frame{kind: whoHas, target: us6, sender: them6, mac: theirMAC}
	b = answerFrame(ourMAC, &solicit)
	na = header.NDPNeighborAdvert(header.ICMPv6(b[54:]).MessageBody())
	back, _ := parseFrame(b)
	if !bytes.Equal(b[:6], theirMAC[:]) || !na.SolicitedFlag() || back.kind != isHere || back.target != us6 || back.mac != ourMAC {
		t.Errorf("neighbour advertisement: % x", b)
	}
}

// Whatever comes in, parsing ends, and what it accepts has a usable target and
// a unicast sender; an answer to it parses again.
func FuzzParseFrame(f *testing.F) {
	for _, b := range [][]byte{
		probeARP(theirMAC, us4), announceFrame(theirMAC, us4), probeND(theirMAC, us6), announceFrame(theirMAC, us6),
		arpFrame(header.ARPReply, ourMAC, theirMAC, ourMAC, us4, them4), advertFrame(ourMAC, theirMAC, us6, them6, true),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, _ := parseFrame(b)
		if fr.kind == noQuestion {
			return
		}
		if !fr.target.IsValid() || !unicastMAC(fr.mac[:]) {
			t.Fatalf("accepted %+v", fr)
		}
		if fr.kind != whoHas || fr.target.IsUnspecified() {
			return
		}
		back, _ := parseFrame(answerFrame(ourMAC, &fr))
		if back.kind != isHere || back.target != fr.target {
			t.Fatalf("answer to %+v parses as %+v", fr, back)
		}
	})
}

func TestTunnelMTU(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		underlay int
		peer     netip.Addr
		want     int
	}{
		{1500, v4, 1420}, {1500, v6, 1420}, {1460, v4, 1400}, {1460, v6, 1380}, {9000, v4, 1420}, {0, v6, 1420}, {1300, v6, 1280},
	} {
		if got := TunnelMTU(c.underlay, c.peer); got != c.want {
			t.Errorf("TunnelMTU(%d, %s): got %d, want %d", c.underlay, c.peer, got, c.want)
		}
	}
}

func TestParseDestination(t *testing.T) {
	for _, c := range []struct {
		in, prefix string
		port       uint16
	}{
		{"10.0.0.0/8", "10.0.0.0/8", 0}, {"10.1.2.3/8:443", "10.0.0.0/8", 443}, {"169.254.169.254:80", "169.254.169.254/32", 80},
		{"fd00::/8", "fd00::/8", 0}, {"[fd00::1]:53", "fd00::1/128", 53}, {"[fd00::/8]:53", "fd00::/8", 53}, {"::1", "::1/128", 0},
	} {
		d, err := ParseDestination(c.in)
		if err != nil || d.Prefix.String() != c.prefix || d.Port != c.port {
			t.Errorf("%s: got %v, %v", c.in, d, err)
			continue
		}
		if again, err := ParseDestination(d.String()); err != nil || again != d {
			t.Errorf("%s: its string %s parses as %v, %v", c.in, d, again, err)
		}
	}
	for _, bad := range []string{"", "x", "10.0.0.0/33", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "[::1", "[::1]:", "[::1]80", "::ffff:10.0.0.1", "fe80::1%eth0"} {
		if d, err := ParseDestination(bad); err == nil {
			t.Errorf("%q: accepted as %v", bad, d)
		}
	}
}
