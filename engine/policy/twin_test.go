package policy

import (
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/packet"
)

// linear is the slow twin: it reads the rules as the requirements tell them,
// one after the other, and shares no code with the compiled Set. It returns
// the index of the first rule that matches, counted through all groups.
func linear(in Input, p *packet.Parsed) uint32 {
	i := uint32(0)
	for _, g := range in.Groups {
		for _, r := range g.Egress {
			if linearRule(in, g.Account, r, p) {
				return i
			}
			i++
		}
	}
	return NoRule
}

func linearRule(in Input, account string, r api.Rule, p *packet.Parsed) bool {
	proto := map[string]int{"-1": -1, "all": -1, "tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58}
	want, ok := proto[strings.ToLower(r.Protocol)]
	if !ok {
		want, _ = strconv.Atoi(r.Protocol)
	}
	if want != -1 && want != int(p.Proto) {
		return false
	}
	hasPorts := p.Proto == 6 || p.Proto == 17
	isICMP := p.Proto == 1 || p.Proto == 58
	if (hasPorts || isICMP) && !p.Transport {
		return false
	}
	if want != -1 {
		if hasPorts && (int(p.DstPort) < r.FromPort || int(p.DstPort) > r.ToPort) {
			return false
		}
		if isICMP && r.FromPort != -1 {
			if r.FromPort != int(p.Type) || r.ToPort != -1 && r.ToPort != int(p.Code) {
				return false
			}
		}
	}
	dst := netip.AddrFrom16(p.Dst)
	if p.Version == 4 {
		dst = dst.Unmap()
	}
	remotes := []netip.Prefix{r.CIDR}
	if r.Group != "" {
		remotes = in.Members(r.Group)
	}
	if r.PrefixList != "" {
		remotes = nil
		for _, l := range in.Lists {
			if l.Account == account && l.Name == r.PrefixList {
				remotes = l.Entries
			}
		}
	}
	for _, c := range remotes {
		if c.Contains(dst) { // Contains masks the host bits and keeps families apart
			return true
		}
	}
	return false
}

// world makes random rule sets and packets that hit their edges.
type world struct {
	*rand.Rand
	addrs []netip.Addr // addresses that the rules mention
	ports []int
}

var someProtocols = []string{"-1", "all", "tcp", "TCP", "udp", "icmp", "icmpv6", "6", "17", "1", "58", "47", "132", "0", "255"}

func newWorld(seed uint64) *world {
	return &world{Rand: rand.New(rand.NewPCG(seed, 1))}
}

func (w *world) prefix() netip.Prefix {
	var b [16]byte
	for i := range b {
		b[i] = byte(w.Uint32())
	}
	if w.IntN(2) == 0 {
		a := [4]byte{10, byte(w.IntN(3)), b[2] & 3, b[3]}
		if w.IntN(8) == 0 {
			a = [4]byte(b[:4])
		}
		p := netip.PrefixFrom(netip.AddrFrom4(a), [...]int{0, 1, 8, 9, 15, 16, 23, 24, 25, 31, 32, 32, 32}[w.IntN(13)])
		w.addrs = append(w.addrs, p.Addr())
		return p
	}
	copy(b[:4], []byte{0xfd, 0, 0, byte(w.IntN(2))})
	for i := 4; i < 15; i++ {
		b[i] &= 1
	}
	if w.IntN(8) == 0 {
		b[0] = byte(w.Uint32())
	}
	p := netip.PrefixFrom(netip.AddrFrom16(b), [...]int{0, 1, 7, 32, 33, 63, 64, 65, 96, 127, 128, 128, 128}[w.IntN(13)])
	if p.Addr().Is4In6() {
		return w.prefix()
	}
	w.addrs = append(w.addrs, p.Addr())
	return p
}

func (w *world) port() int {
	return [...]int{0, 1, 22, 53, 80, 443, 5432, 8080, 65534, 65535, w.IntN(65536)}[w.IntN(11)]
}

func (w *world) rule() api.Rule {
	r := api.Rule{Protocol: someProtocols[w.IntN(len(someProtocols))]}
	switch proto, _ := parseProtocol(r.Protocol); proto {
	case 6, 17:
		r.FromPort, r.ToPort = w.port(), w.port()
		if w.IntN(3) == 0 {
			r.ToPort = r.FromPort
		}
		if r.FromPort > r.ToPort {
			r.FromPort, r.ToPort = r.ToPort, r.FromPort
		}
		w.ports = append(w.ports, r.FromPort, r.ToPort)
	case 1, 58:
		r.FromPort, r.ToPort = w.IntN(6)-1, w.IntN(4)-1
	default:
		r.FromPort, r.ToPort = w.IntN(100), w.IntN(100) // ignored
	}
	switch w.IntN(8) {
	case 0:
		r.PrefixList = "pl" + strconv.Itoa(w.IntN(3))
	case 1:
		r.Group = "ref" + strconv.Itoa(w.IntN(3))
	default:
		r.CIDR = w.prefix()
	}
	return r
}

// input returns a valid Input: rules that would be duplicates are left out.
func (w *world) input() Input {
	members := map[string][]netip.Prefix{}
	for _, name := range []string{"ref0", "ref1"} {
		for range w.IntN(20) {
			members[name] = append(members[name], w.prefix())
		}
	}
	in := Input{Version: w.Uint32(), Members: func(g string) []netip.Prefix { return members[g] }}
	for i := range 3 {
		l := api.PrefixList{Account: "a", Name: "pl" + strconv.Itoa(i)}
		for range w.IntN(5) {
			l.Entries = append(l.Entries, w.prefix())
		}
		in.Lists = append(in.Lists, l)
	}
	in.Lists = append(in.Lists, api.PrefixList{Account: "b", Name: "pl0", Entries: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}})
	in.Limits = Limits{RulesPerGroup: 1000, Total: 100000}
	for i := range w.IntN(6) {
		g := api.SecurityGroup{Account: "a", Name: "sg" + strconv.Itoa(i)}
		seen := map[normal]bool{}
		for range w.IntN([...]int{2, 8, 61}[w.IntN(3)]) {
			r := w.rule()
			n, err := normalize(&r)
			if err == nil && !seen[n] {
				seen[n] = true
				g.Egress = append(g.Egress, r)
			}
		}
		g.Ingress = append(g.Ingress, w.rule())
		in.Groups = append(in.Groups, g)
	}
	return in
}

// packet returns a first packet that is often at, next to or near an edge of
// some rule.
func (w *world) packet(p *packet.Parsed) {
	*p = packet.Parsed{Transport: w.IntN(30) != 0}
	var dst netip.Addr
	if len(w.addrs) > 0 && w.IntN(10) != 0 {
		dst = w.addrs[w.IntN(len(w.addrs))]
		switch w.IntN(6) {
		case 0:
			dst = dst.Next()
		case 1:
			dst = dst.Prev()
		case 2:
			pre, _ := dst.Prefix(w.IntN(dst.BitLen() + 1))
			dst = pre.Addr()
		case 3:
			pre, _ := dst.Prefix(w.IntN(dst.BitLen() + 1))
			dst = pre.Addr().Prev()
		}
	}
	if !dst.IsValid() {
		var b [16]byte
		for i := range b {
			b[i] = byte(w.Uint32())
		}
		dst = netip.AddrFrom16(b)
		if w.IntN(2) == 0 {
			dst = netip.AddrFrom4([4]byte(b[:4]))
		}
	}
	p.Version, p.Dst = 6, dst.As16()
	if dst.Is4() {
		p.Version = 4
	}
	p.Proto = [...]uint8{6, 6, 17, 17, 1, 58, 47, 132, 0, 255, uint8(w.Uint32())}[w.IntN(11)]
	p.DstPort = uint16(w.port())
	if len(w.ports) > 0 && w.IntN(2) == 0 {
		p.DstPort = uint16(w.ports[w.IntN(len(w.ports))] + w.IntN(3) - 1)
	}
	p.Type, p.Code = uint8(w.IntN(5)), uint8(w.IntN(4))
	if w.IntN(10) == 0 {
		p.Type, p.Code = 255, 255
	}
}
