package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fe919326/spillway/internal/clock"
)

var testBlock = Block{V4: netip.MustParsePrefix("100.112.4.0/29"), V6: netip.MustParsePrefix("fd53:7069:6c6c:1::/64")}

func newInner(t testing.TB, cfg InnerConfig) *Inner {
	t.Helper()
	p, err := NewInner(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func take(t testing.TB, p *Inner, owner string) Pair {
	t.Helper()
	x, err := p.Take(owner)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestInnerTakesLowestFree(t *testing.T) {
	p := newInner(t, InnerConfig{Blocks: []Block{testBlock}, Clock: clock.NewFake()})
	for i, want := range []string{"[100.112.4.2 fd53:7069:6c6c:1::2]", "[100.112.4.3 fd53:7069:6c6c:1::3]"} {
		if got := fmt.Sprint(take(t, p, fmt.Sprintf("t%d", i)).Addrs()); got != want {
			t.Errorf("task %d got %s, want %s (.1 is the endpoint's)", i, got, want)
		}
	}
	if first, again := take(t, p, "t0"), take(t, p, "t0"); first != again || p.Len() != 2 {
		t.Errorf("an owner that asks twice got %v and %v", first, again)
	}
	if o, ok := p.Owner(netip.MustParseAddr("100.112.4.3")); o != "t1" || !ok {
		t.Errorf("Owner: %q, %v", o, ok)
	}
	if o, ok := p.Owner(netip.Addr{}); ok {
		t.Errorf("the zero address has an owner: %q", o)
	}
}

func TestZ41_InnerAddressRests(t *testing.T) {
	c := clock.NewFake()
	p := newInner(t, InnerConfig{Blocks: []Block{testBlock}, Clock: c})
	first := take(t, p, "old")
	if err := p.Release("old"); err != nil {
		t.Fatal(err)
	}
	if got := take(t, p, "new"); got == first {
		t.Error("the next task got the address at once: late answers would reach it")
	}
	if got := take(t, p, "old"); got != first {
		t.Errorf("the same task came back to %v, had %v", got, first)
	}
	p.Release("old")
	c.Advance(DefaultRest)
	if got := take(t, p, "third"); got != first {
		t.Errorf("after the rest the lowest address is free, got %v", got)
	}
}

func TestInnerFull(t *testing.T) {
	c := clock.NewFake()
	p := newInner(t, InnerConfig{Blocks: []Block{testBlock}, Clock: c}) // /29: .2 to .6
	for i := range 5 {
		take(t, p, fmt.Sprintf("t%d", i))
	}
	p.Release("t0")
	_, err := p.Take("one-too-many")
	if !errors.Is(err, ErrFull) {
		t.Fatalf("error %v", err)
	}
	for _, part := range []string{"100.112.4.0/29", "4 in use", "1 rest", "limits.max_tasks"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	grown := Block{V4: netip.MustParsePrefix("100.112.8.0/22"), V6: netip.MustParsePrefix("fd53:7069:6c6c:2::/64")}
	if err := p.SetBlocks([]Block{testBlock, grown}); err != nil {
		t.Fatal(err)
	}
	if got := take(t, p, "one-too-many"); got.V4.String() != "100.112.8.2" {
		t.Errorf("got %v, want the first of the new block", got)
	}
}

func TestInnerRefusesNonsense(t *testing.T) {
	p := newInner(t, InnerConfig{Clock: clock.NewFake()})
	if _, err := p.Take("t"); !errors.Is(err, ErrFull) {
		t.Errorf("without a block: %v", err)
	}
	for _, owner := range []string{"", "a b", "a\nb", "a\x7f", strings.Repeat("x", 256)} {
		if _, err := p.Take(owner); err == nil || errors.Is(err, ErrFull) {
			t.Errorf("owner %q: %v", owner, err)
		}
	}
	for _, b := range []Block{{}, {V4: netip.MustParsePrefix("fd00::/64")}, {V4: netip.MustParsePrefix("10.0.0.0/31")},
		{V4: netip.MustParsePrefix("10.0.0.1/24")}} {
		if err := p.SetBlocks([]Block{b}); err == nil {
			t.Errorf("block %v was taken", b)
		}
	}
	if err := p.SetBlocks([]Block{testBlock, testBlock}); err == nil {
		t.Error("two equal blocks were taken")
	}
}

func TestInnerSurvivesKill(t *testing.T) {
	c := clock.NewFake()
	path := filepath.Join(t.TempDir(), "inner")
	cfg := InnerConfig{Blocks: []Block{testBlock}, Clock: c, Path: path}
	p := newInner(t, cfg)
	a, b := take(t, p, "a"), take(t, p, "b")
	p.Release("b")
	// Killed in the middle of a line: no Close, half a record.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("take 100.112.4.0/29 fd53:7069:6c6c:1::/64 4 hal")
	f.Close()

	p = newInner(t, cfg)
	if got := take(t, p, "a"); got != a {
		t.Errorf("a moved from %v to %v", a, got)
	}
	if got := take(t, p, "c"); got == b || got == a {
		t.Errorf("c got %v, which is in use or rests", got)
	}
	if err := p.Keep([]string{"c"}); err != nil {
		t.Fatal(err)
	}
	if p.Len() != 1 {
		t.Errorf("%d owners, want only the task that is alive", p.Len())
	}
	p = newInner(t, cfg)
	if got := take(t, p, "d"); got == a || got == b {
		t.Errorf("d got %v, which rests", got)
	}
}

func TestCorruptJournalIsRefused(t *testing.T) {
	for _, text := range []string{
		"rubbish\n",
		"take 100.112.4.0/29 - 1 a\n",  // the endpoint's own address
		"take 100.112.4.0/29 - 7 a\n",  // the last address
		"take 100.112.4.0/29 - -1 a\n", // no number
		"take - - 2 a\n",
		"take 100.112.4.0/29 - 2 a\ntake 100.112.4.0/29 - 2 b\n",
		"take 100.112.4.0/29 - 2 a\ntake 100.112.4.0/29 - 3 a\n",
		"take 100.112.4.0/29 - 2 a\nfree 100.112.4.0/29 - 3 a\n",
	} {
		path := filepath.Join(t.TempDir(), "inner")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewInner(InnerConfig{Path: path}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func TestJournalStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inner")
	c := clock.NewFake()
	p := newInner(t, InnerConfig{Blocks: []Block{testBlock}, Clock: c, Path: path})
	stay := take(t, p, "stays")
	for i := range 5000 {
		take(t, p, "x")
		p.Release("x")
		if i%1000 == 0 {
			c.Advance(time.Minute)
		}
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > 200_000 {
		t.Errorf("the journal of 2 tasks has %d bytes after 10,000 changes (%v)", fi.Size(), err)
	}
	p = newInner(t, InnerConfig{Blocks: []Block{testBlock}, Clock: c, Path: path})
	if got := take(t, p, "stays"); got != stay {
		t.Errorf("moved from %v to %v", stay, got)
	}
}

// The allocator against a model, with restarts.
func TestInnerModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := clock.NewFake()
		cfg := InnerConfig{Blocks: []Block{testBlock}, Clock: c, Path: filepath.Join(t.TempDir(), "inner")}
		p, err := NewInner(cfg)
		if err != nil {
			rt.Fatal(err)
		}
		owns := map[string]Pair{}
		freed := map[Pair]time.Time{}
		by := map[Pair]string{}
		owner := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"})
		rt.Repeat(map[string]func(*rapid.T){
			"take": func(rt *rapid.T) {
				o := owner.Draw(rt, "owner")
				x, err := p.Take(o)
				if err != nil {
					if !errors.Is(err, ErrFull) || owns[o].V4.IsValid() {
						rt.Fatal(err)
					}
					return
				}
				if had, ok := owns[o]; ok && had != x {
					rt.Fatalf("%s moved from %v to %v", o, had, x)
				}
				for other, y := range owns {
					if other != o && y == x {
						rt.Fatalf("%s and %s share %v", other, o, x)
					}
				}
				if at, ok := freed[x]; ok && by[x] != o && c.Wall().Sub(at) < DefaultRest {
					rt.Fatalf("%s got %v %v after %s", o, x, c.Wall().Sub(at), by[x])
				}
				if !testBlock.V4.Contains(x.V4) || !testBlock.V6.Contains(x.V6) || x.V4.As4()[3]&7 < 2 || x.V4.As4()[3]&7 == 7 {
					rt.Fatalf("%v is not a task's address", x)
				}
				owns[o] = x
				delete(freed, x)
			},
			"release": func(rt *rapid.T) {
				o := owner.Draw(rt, "owner")
				if err := p.Release(o); err != nil {
					rt.Fatal(err)
				}
				if x, ok := owns[o]; ok {
					freed[x], by[x] = c.Wall(), o
					delete(owns, o)
				}
			},
			"wait": func(rt *rapid.T) {
				c.Advance(time.Duration(rapid.IntRange(1, 100).Draw(rt, "seconds")) * time.Second)
			},
			"restart": func(rt *rapid.T) {
				if p, err = NewInner(cfg); err != nil {
					rt.Fatal(err)
				}
				if p.Len() != len(owns) {
					rt.Fatalf("%d owners after a restart, want %d", p.Len(), len(owns))
				}
			},
		})
		p.Close()
	})
}

func BenchmarkInnerTakeRelease(b *testing.B) {
	block := Block{V4: netip.MustParsePrefix("100.112.4.0/22"), V6: testBlock.V6}
	c := clock.NewFake()
	p := newInner(b, InnerConfig{Blocks: []Block{block}, Clock: c, Path: filepath.Join(b.TempDir(), "inner")})
	for i := range 500 {
		take(b, p, fmt.Sprint("t", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		take(b, p, "x")
		if err := p.Release("x"); err != nil {
			b.Fatal(err)
		}
	}
}
