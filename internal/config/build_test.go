package config

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/ipam"
)

func key(n byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{n}, 32)) }

func parse(t testing.TB, text string) *File {
	t.Helper()
	f, err := Parse("spillway.yaml", []byte(text))
	if err != nil {
		t.Fatalf("refused:\n%v", err)
	}
	return f
}

func newBook(t testing.TB, c clock.Clock) *ipam.Book {
	t.Helper()
	b, err := ipam.OpenBook(ipam.BookConfig{Path: filepath.Join(t.TempDir(), "alloc.json"), Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func build(t testing.TB, f *File, in Inputs) *api.Snapshot {
	t.Helper()
	s, _, err := Build(f, in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBuildOneMachine(t *testing.T) {
	in := Inputs{Book: newBook(t, clock.NewFake()), Keys: map[string][]string{RoleEgress: {key(1)}, RoleHost: {key(2)}}}
	s := build(t, load(t, "one-machine.yaml"), in)
	if len(s.Endpoints) != 1 {
		t.Fatalf("%d endpoints, want one", len(s.Endpoints))
	}
	e := s.Endpoints[0]
	if !regexp.MustCompile(`^eni-[0-9a-f]{17}$`).MatchString(e.ID) {
		t.Errorf("id %q", e.ID)
	}
	if len(e.Secret) != 32 || !slices.Equal(e.Services, []string{"web"}) || e.Account != "default" {
		t.Errorf("endpoint %+v", e)
	}
	a := e.Addresses[0]
	if a.V4.String() != "10.0.1.50" || a.V6.String() != "fd00:1::50" || a.Owner != "egress-1" || a.Epoch != 1 {
		t.Errorf("address %+v", a)
	}
	if len(a.Prefixes) != 2 || a.Prefixes[0].Prefix.Bits() != 22 || a.Prefixes[1].Prefix.Bits() != 64 || a.Prefixes[0].Machine != "egress-1" {
		t.Errorf("delegations %+v, want a /22 and a /64 for this machine as a host", a.Prefixes)
	}
	for i, p := range a.Prefixes {
		if !s.InnerPools[i].Contains(p.Prefix.Addr()) {
			t.Errorf("%s is outside of the pool %s", p.Prefix, s.InnerPools[i])
		}
	}
	want := []api.Machine{
		{Name: "egress-1", Role: "egress", PublicKeys: []string{key(1)}, Address: netip.MustParseAddrPort("127.0.0.1:51820")},
		{Name: "egress-1", Role: "host", PublicKeys: []string{key(2)}},
	}
	if diff := cmp.Diff(want, s.Machines, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	if s.Stamp != (api.Stamp{Cluster: "file", Revision: 1, Epoch: 1}) {
		t.Errorf("stamp %+v", s.Stamp)
	}
}

// threeSubnets is a file with a connector over three zones and services that
// the test names.
func threeSubnets(services string) string {
	return `
machine: m
subnets:
  - { name: a, zone: a, cidrs: [10.0.1.0/24], interface: eth1, addresses: [10.0.1.50-10.0.1.51] }
  - { name: b, zone: b, cidrs: [10.0.2.0/24], interface: eth2, addresses: [10.0.2.50-10.0.2.51] }
  - { name: c, zone: c, cidrs: [10.0.3.0/24], interface: eth3, addresses: [10.0.3.50-10.0.3.51] }
security_groups:
  - { name: g1, egress: [ { protocol: all, cidrs: [0.0.0.0/0] } ] }
  - { name: g2, egress: [ { protocol: tcp, ports: 443, cidrs: [0.0.0.0/0] } ] }
connectors:
  - { name: one, subnets: [a, b, c], security_groups: [g1, g2] }
  - { name: two, subnets: [b, a], security_groups: [g2, g1] }
  - { name: three, subnets: [a], security_groups: [g1] }
services: [` + services + `]
`
}

// addressesByID is what a user sees: endpoint, address, users.
func addressesByID(s *api.Snapshot) map[string]string {
	out := map[string]string{}
	for _, e := range s.Endpoints {
		out[e.Subnet+" "+strings.Join(e.SecurityGroups, "+")] = fmt.Sprintf("%v %v", e.Addresses[0].V4, e.Services)
	}
	return out
}

func TestS34_S36_S38_Q16_EndpointsAreShared(t *testing.T) {
	in := Inputs{Book: newBook(t, clock.NewFake())}
	f := parse(t, threeSubnets("{name: web, connector: one}, {name: api, connector: two}, {name: cron, connector: three}, {name: pub}"))
	got := addressesByID(build(t, f, in))
	want := map[string]string{
		"a g1":    "10.0.1.50 [cron]",
		"a g1+g2": "10.0.1.51 [api web]", // the order of groups has no effect
		"b g1+g2": "10.0.2.50 [api web]",
		"c g1+g2": "10.0.3.50 [web]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

func TestS16_S21_EndpointLivesWithItsServices(t *testing.T) {
	c := clock.NewFake()
	in := Inputs{Book: newBook(t, c)}
	web, api2 := "{name: web, connector: one}", "{name: api, connector: two}"
	if s := build(t, parse(t, threeSubnets("{name: pub}")), in); len(s.Endpoints) != 0 {
		t.Errorf("connectors without a service have %d endpoints", len(s.Endpoints))
	}
	both := build(t, parse(t, threeSubnets(web+", "+api2)), in)
	one := build(t, parse(t, threeSubnets(api2)), in)
	if len(both.Endpoints) != 3 || len(one.Endpoints) != 2 {
		t.Fatalf("%d, then %d endpoints; want 3, then 2", len(both.Endpoints), len(one.Endpoints))
	}
	again := build(t, parse(t, threeSubnets(web+", "+api2)), in)
	if diff := cmp.Diff(both.Endpoints, again.Endpoints, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("a service that came back within the hold got another endpoint:\n%s", diff)
	}
	if again.Stamp.Revision != one.Stamp.Revision+1 || one.Stamp.Revision != both.Stamp.Revision+1 {
		t.Errorf("revisions %d %d %d must grow with every change", both.Stamp.Revision, one.Stamp.Revision, again.Stamp.Revision)
	}
	// Endpoint (a, g1+g2) is gone, its address rests; the other one of the
	// subnet goes to (a, g1), and a third would have to wait.
	build(t, parse(t, threeSubnets("")), in)
	three := build(t, parse(t, threeSubnets("{name: cron, connector: three}")), in)
	if got := addressesByID(three)["a g1"]; got != "10.0.1.51 [cron]" {
		t.Errorf("got %s: the resting address must not be used again", got)
	}
	c.Advance(ipam.DefaultHold + time.Second)
	_, _, err := Build(parse(t, threeSubnets(web+", {name: cron, connector: three}")), in)
	if err != nil {
		t.Errorf("after the hold: %v", err)
	}
}

func TestBuildIsDeterministicAndUnchangedIsUnchanged(t *testing.T) {
	c := clock.NewFake()
	in := Inputs{Book: newBook(t, c), Keys: map[string][]string{RoleEgress: {key(9)}}}
	f := load(t, "all-keys.yaml")
	first := build(t, f, in)
	text := func(s *api.Snapshot) string {
		b, err := json.MarshalIndent(s, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for range 5 {
		c.Advance(time.Hour)
		if diff := cmp.Diff(text(first), text(build(t, load(t, "all-keys.yaml"), in))); diff != "" {
			t.Fatalf("the same file gave another snapshot:\n%s", diff)
		}
	}
}

func TestBuildAllKeys(t *testing.T) {
	in := Inputs{Book: newBook(t, clock.NewFake()), Keys: map[string][]string{RoleEgress: {key(9)}, RoleHost: {key(8)}}}
	s := build(t, load(t, "all-keys.yaml"), in)
	var machines []string
	for _, m := range s.Machines {
		machines = append(machines, fmt.Sprintf("%s/%s/%d keys/%v", m.Name, m.Role, len(m.PublicKeys), m.Address.IsValid()))
	}
	want := []string{"egress-1/egress/1 keys/true", "egress-1/host/1 keys/false", "egress-2/egress/1 keys/true",
		"host-7/host/2 keys/false", "laptop/client/1 keys/false"}
	if diff := cmp.Diff(want, machines); diff != "" {
		t.Errorf("machines (-want +got):\n%s", diff)
	}
	if len(s.Endpoints) != 3 {
		t.Fatalf("%d endpoints", len(s.Endpoints))
	}
	for _, e := range s.Endpoints {
		if e.Deny != "drop" || e.UDPMapping != "independent" {
			t.Errorf("endpoint %+v", e)
		}
		switch e.Subnet {
		case "subnet-a":
			if len(e.Addresses) != 2 || e.Addresses[0].Standby != "egress-2" {
				t.Errorf("subnet-a: %+v", e.Addresses)
			}
		case "subnet-b":
			if a := e.Addresses[0]; a.V4.IsValid() || a.Owner != "egress-2" {
				t.Errorf("socket driver without addresses: %+v", a)
			}
		}
		for _, a := range e.Addresses {
			hosts := map[string]int{}
			for _, p := range a.Prefixes {
				if p.Service == "" {
					hosts[p.Machine]++
				}
			}
			families := 1
			if e.Subnet == "subnet-a" {
				families = 2
			}
			// max_tasks 2000 needs two blocks.
			if hosts["host-7"] != 2*families || hosts["egress-1"] != 2*families {
				t.Errorf("%s: delegations %v", e.Subnet, hosts)
			}
		}
	}
	// Machines that share a file agree on what is lent.
	other := build(t, load(t, "all-keys.yaml"), Inputs{Book: newBook(t, clock.NewFake())})
	for i := range s.Endpoints {
		for k := range s.Endpoints[i].Addresses {
			if !slices.Equal(s.Endpoints[i].Addresses[k].Prefixes, other.Endpoints[i].Addresses[k].Prefixes) {
				t.Errorf("two machines disagree about %s", s.Endpoints[i].Subnet)
			}
		}
	}
}

func TestBuildClients(t *testing.T) {
	in := Inputs{Book: newBook(t, clock.NewFake())}
	f := parse(t, threeSubnets("{name: web, connector: one}"))
	per := map[string]int{}
	for i := range 30 {
		in.Clients = append(in.Clients, Machine{Service: "web",
			Machine: api.Machine{Name: fmt.Sprintf("laptop-%d", i), Role: RoleClient, PublicKeys: []string{key(byte(i + 10))}}})
	}
	in.Clients[0].Zone = "c"
	seen := map[netip.Prefix]bool{}
	for _, e := range build(t, f, in).Endpoints {
		for _, p := range e.Addresses[0].Prefixes {
			if p.Service == "" {
				continue
			}
			if p.Service != "web" || !p.Prefix.IsSingleIP() || seen[p.Prefix] {
				t.Errorf("delegation %+v", p)
			}
			seen[p.Prefix] = true
			per[e.Subnet]++
			if p.Machine == "laptop-0" && e.Subnet != "c" {
				t.Errorf("laptop-0 of zone c leaves by %s", e.Subnet)
			}
		}
	}
	if len(seen) != 30 || per["a"] < 4 || per["b"] < 4 || per["c"] < 4 {
		t.Errorf("30 clients over three endpoints: %v", per)
	}
	in.Clients = append(in.Clients, in.Clients[0])
	if _, _, err := Build(f, in); err == nil || !strings.Contains(err.Error(), "laptop-0") {
		t.Errorf("the same client twice: %v", err)
	}
}

func TestS11_WarnsBelowThreeZones(t *testing.T) {
	f := parse(t, threeSubnets("{name: web, connector: one}"))
	_, warnings, err := Build(f, Inputs{Book: newBook(t, clock.NewFake())})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`connector "two" uses subnets in 2 zones; three or more let its services survive the loss of one`,
		`connector "three" uses subnets in 1 zone; three or more let its services survive the loss of one`}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestBuildErrors(t *testing.T) {
	f := parse(t, threeSubnets("{name: x1, connector: one}, {name: x3, connector: three}"))
	if _, _, err := Build(f, Inputs{}); err == nil {
		t.Error("Build without a book")
	}
	narrow := parse(t, strings.ReplaceAll(threeSubnets("{name: x1, connector: one}, {name: x3, connector: three}"), "10.0.1.50-10.0.1.51", "10.0.1.50"))
	_, _, err := Build(narrow, Inputs{Book: newBook(t, clock.NewFake())})
	if !errors.Is(err, ipam.ErrFull) || !strings.Contains(err.Error(), `spillway.yaml: subnet "a"`) || !strings.Contains(err.Error(), "10.0.1.50") {
		t.Errorf("two endpoints, one address: %v", err)
	}
	own := parse(t, "machine: m\nmachines: [ { name: m, role: egress, public_key: \""+key(3)+"\" } ]\n")
	_, _, err = Build(own, Inputs{Book: newBook(t, clock.NewFake()), Keys: map[string][]string{RoleEgress: {key(4)}}})
	if err == nil || !strings.Contains(err.Error(), key(4)) {
		t.Errorf("another key than this machine's own: %v", err)
	}
}

// Whatever services a file has, no address and no prefix is ever given twice,
// and an endpoint that stays keeps what it has.
func TestBuildModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := clock.NewFake()
		book, err := ipam.OpenBook(ipam.BookConfig{Clock: c})
		if err != nil {
			rt.Fatal(err)
		}
		last := map[string]api.EndpointAddress{}
		for range rapid.IntRange(1, 6).Draw(rt, "rounds") {
			var services []string
			for i, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"one", "two", "three"}), 0, 3, rapid.ID).Draw(rt, "connectors") {
				services = append(services, fmt.Sprintf("{name: s%d, connector: %s}", i, name))
			}
			c.Advance(time.Duration(rapid.IntRange(0, 400).Draw(rt, "seconds")) * time.Second)
			f, err := Parse("f", []byte(threeSubnets(strings.Join(services, ","))))
			if err != nil {
				rt.Fatal(err)
			}
			s, _, err := Build(f, Inputs{Book: book})
			if err != nil {
				rt.Fatal(err) // three addresses are never needed at once
			}
			now := map[string]api.EndpointAddress{}
			addrs, prefixes := map[netip.Addr]bool{}, map[netip.Prefix]bool{}
			for _, e := range s.Endpoints {
				a := e.Addresses[0]
				if old, ok := last[e.ID]; ok && (old.V4 != a.V4 || !slices.Equal(old.Prefixes, a.Prefixes)) {
					rt.Fatalf("%s moved from %+v to %+v", e.ID, old, a)
				}
				if addrs[a.V4] {
					rt.Fatalf("%s is given twice", a.V4)
				}
				addrs[a.V4] = true
				for _, p := range a.Prefixes {
					if prefixes[p.Prefix] {
						rt.Fatalf("%s is lent twice", p.Prefix)
					}
					prefixes[p.Prefix] = true
				}
				now[e.ID] = a
			}
			last = now
		}
	})
}

// The examples of the manual are files that load.
func TestManualExamplesLoad(t *testing.T) {
	text, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, block := range strings.Split(string(text), "```yaml\n") {
		example, _, found := strings.Cut(block, "```")
		if i == 0 || !found {
			continue
		}
		if !strings.Contains(example, "machine:") {
			example = "machine: m\n" + example // an extract
		}
		if _, err := Parse(fmt.Sprintf("example-%d.yaml", i), []byte(example)); err != nil {
			t.Errorf("%v\n%s", err, example)
		}
		n++
	}
	if n < 5 {
		t.Errorf("only %d examples", n)
	}
}

// Every key that the loader knows stands in the manual.
func TestManualNamesEveryKey(t *testing.T) {
	text, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`(?:field\{|seconds\()"([a-z_0-9]+)"`)
	n := 0
	for _, file := range []string{"top.go", "network.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range keys.FindAllStringSubmatch(string(source), -1) {
			n++
			if !strings.Contains(string(text), "`"+m[1]+"`") && !strings.Contains(string(text), "\n## "+m[1]+"\n") {
				t.Errorf("docs/config.md does not describe `%s`", m[1])
			}
		}
	}
	if n < 60 {
		t.Errorf("found only %d keys in the source", n)
	}
}
