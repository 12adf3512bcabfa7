package ipam

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseRange(t *testing.T) {
	for _, tc := range []struct {
		in, want, wrong string
		size            uint64
	}{
		{in: "10.0.1.50-10.0.1.59", want: "10.0.1.50-10.0.1.59", size: 10},
		{in: "10.0.1.50 - 10.0.1.59", want: "10.0.1.50-10.0.1.59", size: 10},
		{in: "10.0.1.50", want: "10.0.1.50", size: 1},
		{in: "fd00:1::50-fd00:1::59", want: "fd00:1::50-fd00:1::59", size: 10},
		{in: "fd00::-fd00::ffff:ffff:ffff:fffe", want: "fd00::-fd00::ffff:ffff:ffff:fffe", size: math.MaxUint64},
		{in: "fd00::ffff:ffff:ffff:ffff-fd00:0:0:1::", want: "fd00::ffff:ffff:ffff:ffff-fd00:0:0:1::", size: 2},
		{in: "::-ffff::", size: math.MaxUint64, want: "::-ffff::"},
		{in: "10.0.1.59-10.0.1.50", wrong: "ends before"},
		{in: "10.0.1.5-fd00::1", wrong: "mixes"},
		{in: "10.0.1.5-", wrong: "not an IP address"},
		{in: "10.0.1", wrong: "not an IP address"},
		{in: "fe80::1%eth0", wrong: "zone"},
		{in: "::ffff:10.0.0.1", wrong: "write it as IPv4"},
		{in: "", wrong: "not an IP address"},
	} {
		r, err := ParseRange(tc.in)
		if tc.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("ParseRange(%q): error %v, want one with %q", tc.in, err, tc.wrong)
			}
			continue
		}
		if err != nil || r.String() != tc.want || r.Size() != tc.size {
			t.Errorf("ParseRange(%q) = %v size %d, %v; want %s size %d", tc.in, r, r.Size(), err, tc.want, tc.size)
		}
	}
}

// TestS19_ReservedAddresses: an endpoint never gets what a subnet keeps.
func TestS19_ReservedAddresses(t *testing.T) {
	for _, tc := range []struct {
		prefix string
		free   string // some that may be used
		kept   string // all that may not
	}{
		{"10.0.1.0/24", "10.0.1.4 10.0.1.254", "10.0.1.0 10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.255"},
		{"10.0.1.16/28", "10.0.1.20 10.0.1.30", "10.0.1.16 10.0.1.17 10.0.1.18 10.0.1.19 10.0.1.31"},
		{"10.0.1.8/29", "10.0.1.9 10.0.1.14", "10.0.1.8 10.0.1.15"},
		{"10.0.1.8/31", "10.0.1.8 10.0.1.9", ""},
		{"10.0.1.8/32", "10.0.1.8", ""},
		{"fd00::/64", "fd00::4 fd00::1:0", "fd00:: fd00::1 fd00::2 fd00::3 fd00::ffff:ffff:ffff:ffff"},
		{"fd00::/126", "fd00::1 fd00::3", "fd00::"},
	} {
		p := netip.MustParsePrefix(tc.prefix)
		for _, s := range strings.Fields(tc.free) {
			if why := Reserved(p, netip.MustParseAddr(s)); why != "" {
				t.Errorf("%s in %s: kept as %s; an endpoint should get it", s, p, why)
			}
		}
		for _, s := range strings.Fields(tc.kept) {
			if Reserved(p, netip.MustParseAddr(s)) == "" {
				t.Errorf("%s in %s: an endpoint could get it", s, p)
			}
		}
	}
}

func TestCheckPools(t *testing.T) {
	for in, wrong := range map[string]string{
		"100.112.0.0/12 fd53:7069:6c6c::/48": "",
		"10.0.0.0/22":                        "",
		"10.0.0.0/23":                        "smaller than one block (/22)",
		"fd00::/65":                          "smaller than one block (/64)",
		"10.0.0.0/16 10.0.4.0/22":            "overlaps",
	} {
		var pools []netip.Prefix
		for _, s := range strings.Fields(in) {
			pools = append(pools, netip.MustParsePrefix(s))
		}
		err := CheckPools(pools)
		if wrong == "" && err != nil || wrong != "" && (err == nil || !strings.Contains(err.Error(), wrong)) {
			t.Errorf("CheckPools(%s) = %v, want %q", in, err, wrong)
		}
	}
	if CheckPools([]netip.Prefix{{}}) == nil {
		t.Error("CheckPools took a zero prefix")
	}
}

// Arithmetic on addresses, against the slow way of stepping with Next.
func TestAddrAtAndOffset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(100, 128).Draw(t, "bits")
		raw := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr"))
		p := netip.PrefixFrom(netip.AddrFrom16(raw), bits).Masked()
		if rapid.Bool().Draw(t, "v4") {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte(raw[:4])), bits-96).Masked()
		}
		n := rapid.Uint64Range(0, min(600, uint64(1)<<min(63, p.Addr().BitLen()-p.Bits())-1)).Draw(t, "n")
		want := p.Addr()
		for range n {
			want = want.Next()
		}
		if got := addrAt(p, n); got != want {
			t.Fatalf("addrAt(%s, %d) = %s, want %s", p, n, got, want)
		}
		if got := offset(p, want); got != n {
			t.Fatalf("offset(%s, %s) = %d, want %d", p, want, got, n)
		}
		if last := Last(p); !p.Contains(last) || p.Contains(last.Next()) {
			t.Fatalf("Last(%s) = %s", p, last)
		}
	})
}
