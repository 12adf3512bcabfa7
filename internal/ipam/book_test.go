package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fe919326/spillway/internal/clock"
)

var testPools = []netip.Prefix{netip.MustParsePrefix("100.112.0.0/12"), netip.MustParsePrefix("fd53:7069:6c6c::/48")}

func ranges(t testing.TB, texts ...string) (out []Range) {
	t.Helper()
	for _, s := range texts {
		r, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// bookIn opens the book in dir with a clock that the test moves.
func bookIn(t testing.TB, dir string, c clock.Clock) *Book {
	t.Helper()
	b, err := OpenBook(BookConfig{Path: filepath.Join(dir, "alloc.json"), Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// plan asks for the endpoints e1, e2, … of one subnet and nothing else.
func plan(t testing.TB, b *Book, rs []Range, ids ...string) map[string][]Address {
	t.Helper()
	out, err := tryPlan(b, rs, ids...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryPlan(b *Book, rs []Range, ids ...string) (map[string][]Address, error) {
	out := map[string][]Address{}
	err := b.Update(func(tx *Tx) error {
		for _, id := range ids {
			a, secret, err := tx.Endpoint(EndpointSpec{ID: id, Account: "default", Subnet: "subnet-a", Ranges: rs})
			if err != nil {
				return err
			}
			if len(secret) != 32 {
				return fmt.Errorf("secret of %d bytes", len(secret))
			}
			out[id] = a
			if _, err := tx.Blocks(BlockSpec{Endpoint: id, Machine: "host-1", Pools: testPools, V4: true, V6: true}); err != nil {
				return err
			}
		}
		tx.ReleaseOthers()
		return nil
	})
	return out, err
}

func TestS19_AddressesSurviveRestartAndEdits(t *testing.T) {
	dir, c := t.TempDir(), clock.NewFake()
	rs := ranges(t, "10.0.1.50-10.0.1.59", "fd00:1::50-fd00:1::59")
	first := plan(t, bookIn(t, dir, c), rs, "e1", "e2")
	want := map[string][]Address{
		"e1": {{netip.MustParseAddr("10.0.1.50"), netip.MustParseAddr("fd00:1::50")}},
		"e2": {{netip.MustParseAddr("10.0.1.51"), netip.MustParseAddr("fd00:1::51")}},
	}
	if !reflect.DeepEqual(first, want) {
		t.Fatalf("first plan: %v, want the lowest addresses in order: %v", first, want)
	}
	// A restart, another order, one more endpoint before them, a wider range.
	rs = ranges(t, "10.0.1.40-10.0.1.59", "fd00:1::50-fd00:1::59")
	second := plan(t, bookIn(t, dir, c), rs, "e0", "e2", "e1")
	for id, a := range first {
		if !reflect.DeepEqual(second[id], a) {
			t.Errorf("%s moved from %v to %v", id, a, second[id])
		}
	}
	if got := second["e0"][0].V4.String(); got != "10.0.1.40" {
		t.Errorf("e0 got %s, want the lowest free one", got)
	}
}

func TestS19_ReleasedAddressRests(t *testing.T) {
	dir, c := t.TempDir(), clock.NewFake()
	rs := ranges(t, "10.0.1.50-10.0.1.51")
	b := bookIn(t, dir, c)
	first := plan(t, b, rs, "e1", "e2")
	plan(t, b, rs, "e2") // e1 is gone
	_, err := tryPlan(b, rs, "e2", "e3")
	if !errors.Is(err, ErrFull) {
		t.Fatalf("e3 got the address of e1 at once (error %v): late packets would reach it", err)
	}
	for _, part := range []string{`subnet "subnet-a"`, "all 2 IPv4", "10.0.1.50-10.0.1.51", "1 of them rest", "add a range"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	back := plan(t, b, rs, "e1", "e2")
	if !reflect.DeepEqual(back["e1"], first["e1"]) {
		t.Errorf("e1 came back to %v, had %v", back["e1"], first["e1"])
	}
	plan(t, b, rs, "e2")
	c.Advance(DefaultHold + time.Second)
	if got := plan(t, b, rs, "e2", "e3"); !reflect.DeepEqual(got["e3"], first["e1"]) {
		t.Errorf("after the rest e3 got %v, want %v", got["e3"], first["e1"])
	}
}

// A clock that is set back must not make things rest for years.
func TestK8_RestSurvivesClockSteps(t *testing.T) {
	dir, c := t.TempDir(), clock.NewFake()
	rs := ranges(t, "10.0.1.50")
	b := bookIn(t, dir, c)
	plan(t, b, rs, "e1")
	plan(t, b, rs)
	c.StepWall(-10 * 365 * 24 * time.Hour)
	plan(t, b, rs) // notes the new time
	c.Advance(DefaultHold + time.Second)
	if _, err := tryPlan(b, rs, "e2"); err != nil {
		t.Errorf("one hold after the clock went back ten years: %v", err)
	}
}

func TestEndpointChangesItsRanges(t *testing.T) {
	c := clock.NewFake()
	b := bookIn(t, t.TempDir(), c)
	one := func(count int, rs ...string) []Address {
		t.Helper()
		var out []Address
		if err := b.Update(func(tx *Tx) (err error) {
			out, _, err = tx.Endpoint(EndpointSpec{ID: "e", Account: "a", Subnet: "s", Ranges: ranges(t, rs...), Count: count})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := fmt.Sprint(one(1, "10.0.0.5-10.0.0.9")); got != "[{10.0.0.5 invalid IP}]" {
		t.Errorf("IPv4 only: %s", got)
	}
	if got := fmt.Sprint(one(1, "10.0.0.5-10.0.0.9", "fd00::5")); got != "[{10.0.0.5 fd00::5}]" {
		t.Errorf("IPv6 added: %s", got)
	}
	if got := fmt.Sprint(one(2, "10.0.0.6-10.0.0.9")); got != "[{10.0.0.6 invalid IP} {10.0.0.7 invalid IP}]" {
		t.Errorf("another range, two addresses: %s", got)
	}
	if got := fmt.Sprint(one(1, "10.0.0.5-10.0.0.9")); got != "[{10.0.0.6 invalid IP}]" {
		t.Errorf("one address again: %s", got)
	}
	if got := fmt.Sprint(one(2, "10.0.0.5-10.0.0.9")); got != "[{10.0.0.6 invalid IP} {10.0.0.8 invalid IP}]" {
		t.Errorf("10.0.0.5 and 10.0.0.7 should rest: %s", got)
	}
}

func TestFailedUpdateChangesNothing(t *testing.T) {
	dir := t.TempDir()
	b := bookIn(t, dir, clock.NewFake())
	plan(t, b, ranges(t, "10.0.1.50-10.0.1.59"), "e1")
	before, err := os.ReadFile(filepath.Join(dir, "alloc.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("no")
	if err := b.Update(func(tx *Tx) error { tx.ReleaseOthers(); return want }); !errors.Is(err, want) {
		t.Fatalf("error %v", err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, "alloc.json"))
	if string(before) != string(after) {
		t.Error("a change that failed was written")
	}
	fi, err := os.Stat(filepath.Join(dir, "alloc.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: the file holds secrets", fi.Mode(), err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*.new-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCorruptBookIsRefused(t *testing.T) {
	secret := `"secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`
	rest := `"clients":{},"resting":null,"revisions":{}`
	for name, tc := range map[string]struct{ text, want string }{
		"cut":      {`{"version":1,"endpo`, "unexpected EOF"},
		"empty":    {"", "EOF"},
		"version":  {`{"version":7,"endpoints":{},"blocks":null,` + rest + `}`, "version 7"},
		"unknown":  {`{"version":1,"endpoints":{},"blocks":null,"x":1,` + rest + `}`, `unknown field "x"`},
		"trailing": {`{"version":1,"endpoints":{},"blocks":null,` + rest + `}{}`, "something follows"},
		"secret":   {`{"version":1,"endpoints":{"e":{"account":"a","subnet":"s","addresses":[],"secret":"AAAA"}},"blocks":null,` + rest + `}`, "the secret has 3 bytes"},
		"twice": {`{"version":1,"endpoints":{"e":{"account":"a","subnet":"s","addresses":[{"v4":"10.0.0.5"}],` + secret + `},"f":{"account":"a","subnet":"s","addresses":[{"v4":"10.0.0.5"}],` + secret + `}},"blocks":null,` + rest + `}`,
			"10.0.0.5 belongs to two endpoints"},
		"family": {`{"version":1,"endpoints":{"e":{"account":"a","subnet":"s","addresses":[{"v4":"fd00::1"}],` + secret + `}},"blocks":null,` + rest + `}`, "wrong family"},
		"null":   {`{"version":1,"endpoints":{"e":null},"blocks":null,` + rest + `}`, "is empty"},
		"lent twice": {`{"version":1,"endpoints":{},"blocks":[{"endpoint":"e","index":0,"machine":"m","number":0,"v4":"100.112.0.0/22"},{"endpoint":"e","index":0,"machine":"n","number":0,"v4":"100.112.0.0/22"}],` + rest + `}`,
			"100.112.0.0/22 is lent twice"},
		"size":   {`{"version":1,"endpoints":{},"blocks":[{"endpoint":"e","index":0,"machine":"m","number":0,"v4":"100.112.0.0/20"}],` + rest + `}`, "not a block"},
		"client": {`{"version":1,"endpoints":{},"blocks":null,"clients":{"c":{"endpoint":"e","index":0,"offset":-4}},"resting":null,"revisions":{}}`, "impossible number"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "alloc.json")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenBook(BookConfig{Path: path})
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want ErrCorrupt that names the file and says %q", err, tc.want)
			}
		})
	}
}

func TestZ37_BookIsNoLinkAndNoDevice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "alloc.json")
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBook(BookConfig{Path: path}); err == nil {
		t.Error("followed a link that somebody put in place of the file")
	}
	os.Remove(path)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBook(BookConfig{Path: path}); err == nil {
		t.Error("took a directory for the file")
	}
}

func TestInnerPoolFull(t *testing.T) {
	b, err := OpenBook(BookConfig{Clock: clock.NewFake()})
	if err != nil {
		t.Fatal(err)
	}
	pools := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/20")} // four blocks
	take := func(n int) error {
		return b.Update(func(tx *Tx) error {
			for i := range n {
				if _, err := tx.Blocks(BlockSpec{Endpoint: "e", Machine: fmt.Sprintf("host-%d", i), Pools: pools, V4: true}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := take(4); err != nil {
		t.Fatalf("four hosts, four blocks: %v", err)
	}
	err = take(5)
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "10.64.0.0/20") || !strings.Contains(err.Error(), "add a prefix to inner_pool") {
		t.Errorf("error %v, want one that names the pool and the way out", err)
	}
	pools = append(pools, netip.MustParsePrefix("10.80.0.0/22")) // grown
	if err := take(5); err != nil {
		t.Errorf("with a larger pool: %v", err)
	}
	err = b.Update(func(tx *Tx) error {
		_, err := tx.Blocks(BlockSpec{Endpoint: "e", Machine: "h", Pools: pools, V6: true})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "no IPv6 prefix") {
		t.Errorf("IPv6 without an IPv6 pool: %v", err)
	}
}

// Two machines that read the same file for the first time must agree.
func TestBlocksAgreeBetweenMachines(t *testing.T) {
	rs := ranges(t, "10.0.1.10-10.0.1.200")
	get := func() (out []Block) {
		b, err := OpenBook(BookConfig{Clock: clock.NewFake()})
		if err != nil {
			t.Fatal(err)
		}
		ids := []string{"e1", "e2", "e3", "e4"}
		plan(t, b, rs, ids...)
		if err := b.Update(func(tx *Tx) error {
			for _, id := range ids {
				x, err := tx.Blocks(BlockSpec{Endpoint: id, Machine: "host-1", Pools: testPools, V4: true, V6: true, Count: 3})
				if err != nil {
					return err
				}
				out = append(out, x...)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b := get(), get(); !reflect.DeepEqual(a, b) {
		t.Errorf("two machines disagree:\n%v\n%v", a, b)
	}
}

func TestClientsGetSingleAddresses(t *testing.T) {
	c := clock.NewFake()
	b := bookIn(t, t.TempDir(), c)
	take := func(names ...string) (out []Block) {
		t.Helper()
		if err := b.Update(func(tx *Tx) error {
			for _, n := range names {
				x, err := tx.Client(n, BlockSpec{Endpoint: "e", Pools: testPools, V4: true, V6: true})
				if err != nil {
					return err
				}
				out = append(out, x)
			}
			tx.ReleaseOthers()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := take("a", "b")
	for _, x := range first {
		if x.V4.Bits() != 32 || x.V6.Bits() != 128 {
			t.Errorf("client got %v, want a /32 and a /128", x)
		}
	}
	if first[0] == first[1] {
		t.Error("two clients share an address")
	}
	if got := take("b", "c"); got[0] != first[1] || got[1] == first[0] {
		t.Errorf("b moved, or c got the resting address of a: %v", got)
	}
	c.Advance(DefaultHold + time.Second)
	if got := take("b", "c", "d"); got[2] != first[0] {
		t.Errorf("d got %v, want the address that a gave back, %v", got[2], first[0])
	}
}

// The book against a model: no address or block is ever shared, a hold is
// kept, everything survives reopening.
func TestBookModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := clock.NewFake()
		path := filepath.Join(t.TempDir(), "alloc.json")
		open := func() *Book {
			b, err := OpenBook(BookConfig{Path: path, Clock: c})
			if err != nil {
				rt.Fatal(err)
			}
			return b
		}
		b := open()
		rs := ranges(t, "10.0.1.10-10.0.1.15", "fd00::10-fd00::15")
		lastOwner := map[netip.Addr]string{}
		lastUse := map[netip.Addr]time.Time{}
		kept := map[string][]Address{} // of the last plan
		rt.Repeat(map[string]func(*rapid.T){
			"plan": func(rt *rapid.T) {
				ids := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"e1", "e2", "e3", "e4", "e5", "e6", "e7"}), 0, 5, rapid.ID).Draw(rt, "ids")
				got, err := tryPlan(b, rs, ids...)
				now := c.Wall()
				for a := range lastOwner { // in use until this very moment
					for _, addrs := range kept {
						if addrs[0].V4 == a || addrs[0].V6 == a {
							lastUse[a] = now
						}
					}
				}
				if err != nil {
					if !errors.Is(err, ErrFull) {
						rt.Fatal(err)
					}
					return
				}
				seen := map[netip.Addr]string{}
				for id, addrs := range got {
					if old, ok := kept[id]; ok && !reflect.DeepEqual(old, addrs) {
						rt.Fatalf("%s moved from %v to %v", id, old, addrs)
					}
					for _, a := range []netip.Addr{addrs[0].V4, addrs[0].V6} {
						if seen[a] != "" {
							rt.Fatalf("%s and %s share %s", seen[a], id, a)
						}
						seen[a] = id
						if o := lastOwner[a]; o != "" && o != id && now.Sub(lastUse[a]) < DefaultHold-time.Second {
							rt.Fatalf("%s got %s only %v after %s", id, a, now.Sub(lastUse[a]), o)
						}
						lastOwner[a], lastUse[a] = id, now
					}
				}
				kept = got
			},
			"wait": func(rt *rapid.T) {
				c.Advance(time.Duration(rapid.IntRange(1, 400).Draw(rt, "seconds")) * time.Second)
			},
			"restart": func(*rapid.T) { b = open() },
		})
	})
}

func TestBlocksNeverOverlap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b, err := OpenBook(BookConfig{Clock: clock.NewFake()})
		if err != nil {
			rt.Fatal(err)
		}
		pools := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/18"), netip.MustParsePrefix("fd00::/60"), netip.MustParsePrefix("10.128.0.0/20")}
		used := map[netip.Prefix]string{}
		n := rapid.IntRange(1, 16).Draw(rt, "n") // the IPv6 pool holds 16 blocks
		if err := b.Update(func(tx *Tx) error {
			for i := range n {
				key := fmt.Sprintf("%d/%s", i, rapid.StringMatching("[a-z]{1,4}").Draw(rt, "machine"))
				blocks, err := tx.Blocks(BlockSpec{Endpoint: "e", Machine: key, Pools: pools, V4: true, V6: true})
				if err != nil {
					return err
				}
				for _, p := range blocks[0].Prefixes() {
					if used[p] != "" {
						rt.Fatalf("%s lent to %s and %s", p, used[p], key)
					}
					used[p] = key
				}
			}
			return nil
		}); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestTwoProcessesShareOneFile(t *testing.T) {
	dir, c := t.TempDir(), clock.NewFake()
	rs := ranges(t, "10.0.1.50-10.0.1.59")
	a, b := bookIn(t, dir, c), bookIn(t, dir, c)
	done := make(chan map[string][]Address, 2)
	for _, book := range []*Book{a, b} {
		go func() {
			got, err := tryPlan(book, rs, "e1", "e2", "e3")
			if err != nil {
				t.Error(err)
			}
			done <- got
		}()
	}
	if x, y := <-done, <-done; !reflect.DeepEqual(x, y) {
		t.Errorf("two processes got different answers: %v, %v", x, y)
	}
}

func TestPairBlocks(t *testing.T) {
	p := netip.MustParsePrefix
	got := PairBlocks([]netip.Prefix{p("10.0.0.0/22"), p("fd00::/64"), p("10.0.4.0/22"), p("fd00:0:0:1::/64"), p("10.0.8.0/22")})
	want := []Block{{p("10.0.0.0/22"), p("fd00::/64")}, {p("10.0.4.0/22"), p("fd00:0:0:1::/64")}, {V4: p("10.0.8.0/22")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if e := fmt.Sprint(got[0].Endpoint()); e != "[10.0.0.1 fd00::1]" {
		t.Errorf("the endpoint's own addresses are %s", e)
	}
}
