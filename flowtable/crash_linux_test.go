package flowtable

import (
	"bufio"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

func TestFileSurvivesWithoutClose(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Path: filepath.Join(dir, "flows"), MaxFlows: 500, MaxFlowsPerTask: 500}
	tab, err := Open(cfg, start)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(cfg.Path); st.Mode().Perm() != 0o600 {
		t.Errorf("file mode is %v, want 0600", st.Mode())
	}
	if _, err := Open(cfg, start); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
	refs := map[Ref]Flow{}
	for port := range uint16(400) {
		f := flowOf(protoUDP, uint32(port%3), port)
		r, why := tab.Insert(&f, &dgram, start)
		if why != packet.OK {
			t.Fatal(why)
		}
		tab.Entry(r).Words()[1].Store(uint64(port))
		if port%4 == 0 {
			tab.Remove(r)
			continue
		}
		refs[r] = f
	}
	copied := copyFile(t, cfg.Path)
	tab.Close()
	for _, path := range []string{copied, cfg.Path} {
		cfg.Path = path
		tab, err := Open(cfg, start)
		if err != nil {
			t.Fatal(err)
		}
		if s := tab.Stats(); s.Recovered != 300 || s.Dropped != 0 || s.Fresh {
			t.Errorf("%+v, want 300 recovered", s)
		}
		for r, f := range refs {
			reply := f.Reply()
			if got, d := tab.Lookup(&reply); got != r || d != Inbound || tab.Entry(r).Flow() != f {
				t.Fatalf("flow %+v: found %x %v, want %x", f, got, d, r)
			}
			if got := tab.Entry(r).Words()[1].Load(); got != uint64(f.Inner.SrcPort) {
				t.Errorf("words of %+v did not survive: %d", f, got)
			}
		}
		if all, _ := tab.TaskFlows(1); all != 100 {
			t.Errorf("task 1 has %d flows, want 100", all)
		}
		tab.Close()
	}
}

func copyFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestOpenRefusesWhatIsNoTable(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "flows"), MaxFlows: 100}
	tab, err := Open(cfg, start)
	if err != nil {
		t.Fatal(err)
	}
	tab.Close()
	good, _ := os.ReadFile(cfg.Path)
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   error
	}{
		"truncated":        {func(b []byte) []byte { return b[:len(b)-1] }, ErrLayout},
		"truncated header": {func(b []byte) []byte { return b[:100] }, ErrLayout},
		"longer":           {func(b []byte) []byte { return append(b, 0) }, ErrLayout},
		"other magic":      {func(b []byte) []byte { b[0]++; return b }, ErrLayout},
		"other version":    {func(b []byte) []byte { b[8]++; return b }, ErrLayout},
		"other secret":     {func(b []byte) []byte { b[64]++; return b }, ErrLayout},
		"text":             {func(b []byte) []byte { return []byte("hello, world") }, ErrLayout},
		"empty":            {func(b []byte) []byte { return nil }, nil},
		"maker died":       {func(b []byte) []byte { clear(b[:8]); return b }, nil},
		"garbled entries": {func(b []byte) []byte {
			r := rand.New(rand.NewPCG(1, 1))
			for i := headerSize; i < len(b); i++ {
				b[i] = byte(r.Uint32())
			}
			return b
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Path = filepath.Join(t.TempDir(), "flows")
			bad := c.change(append([]byte(nil), good...))
			os.WriteFile(cfg.Path, bad, 0o600)
			tab, err := Open(cfg, start)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil {
				if now, _ := os.ReadFile(cfg.Path); string(now) != string(bad) {
					t.Error("the refused file was changed")
				}
				return
			}
			if n := tab.Len(); n != 0 {
				t.Errorf("%d flows out of nothing", n)
			}
			tab.Close()
		})
	}
	cfg.MaxFlows = 101
	if _, err := Open(cfg, start); !errors.Is(err, ErrLayout) {
		t.Errorf("other MaxFlows: %v, want ErrLayout", err)
	}
}

func TestOpenRefusesForeignFiles(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) error {
		tab, err := Open(Config{Path: filepath.Join(dir, name), MaxFlows: 10}, start)
		if err == nil {
			tab.Close()
		}
		return err
	}
	os.WriteFile(filepath.Join(dir, "wide"), nil, 0o644)
	if err := open("wide"); !errors.Is(err, ErrInsecure) {
		t.Errorf("mode 0644: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "target"), nil, 0o600)
	os.Symlink("target", filepath.Join(dir, "link"))
	if err := open("link"); err == nil {
		t.Error("followed a symbolic link")
	}
	os.Link(filepath.Join(dir, "target"), filepath.Join(dir, "hard"))
	if err := open("hard"); !errors.Is(err, ErrInsecure) {
		t.Errorf("second name: %v", err)
	}
	if err := open("none/flows"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestOtherBootStartsEmpty(t *testing.T) {
	cfg := Config{Path: filepath.Join(t.TempDir(), "flows"), MaxFlows: 10}
	tab, err := Open(cfg, start+Mono(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f := flowOf(protoUDP, 1, 1)
	tab.Insert(&f, &dgram, start+Mono(time.Hour))
	tab.Close()
	// The clock of another boot began again.
	if tab, err = Open(cfg, start); err != nil {
		t.Fatal(err)
	}
	if s := tab.Stats(); s.Flows != 0 || !s.Fresh {
		t.Errorf("%+v, want an empty, fresh table", s)
	}
	tab.Close()
	// Another boot id.
	b, _ := os.ReadFile(cfg.Path)
	var h header
	if err := h.decode(b, 10); err != nil {
		t.Fatal(err)
	}
	h.Boot[3]++
	copy(b, h.encode())
	os.WriteFile(cfg.Path, b, 0o600)
	if tab, err = Open(cfg, start+Mono(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !tab.Stats().Fresh {
		t.Error("table of another boot was kept")
	}
	tab.Close()
}

func TestTornWindowBecomesLiberal(t *testing.T) {
	cfg := Config{MaxFlows: 16}
	if err := cfg.fill(); err != nil {
		t.Fatal(err)
	}
	tab, err := openRegion(cfg, newHeapRegion(sizeFor(16)), start)
	if err != nil {
		t.Fatal(err)
	}
	k := &talk{t: t, tab: tab, f: flowOf(protoTCP, 1, 1), now: start, wild: 100}
	k.established()
	e := tab.Entry(k.ref)
	if _, ok := e.lock(); !ok { // and the process is killed
		t.Fatal("not locked")
	}
	e.win[0].end = 1 << 30
	k.tab, err = openRegion(cfg, copyOf(tab.region.bytes()), start)
	if err != nil {
		t.Fatal(err)
	}
	k.out(ack, 101, 501, 100)
	k.in(ack, 501, 101, 100)
	k.want(Established)
}

// TestKilledProcess kills a process that inserts, changes and removes flows as
// fast as it can, several times on the same file.
func TestKilledProcess(t *testing.T) {
	const variable = "SPILLWAY_TEST_KILLED"
	cfg := Config{Path: os.Getenv(variable), MaxFlows: 2000, MaxFlowsPerTask: 2000}
	if cfg.Path != "" {
		churnUntilKilled(t, cfg)
	}
	cfg.Path = filepath.Join(t.TempDir(), "flows")
	recovered := 0
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
		cmd.Env = append(os.Environ(), variable+"="+cfg.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(out).ReadString('\n'); line != "churning\n" {
			t.Fatalf("child said %q", line)
		}
		time.Sleep(time.Duration(20+10*round) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()

		tab, err := Open(cfg, clock.System().Mono())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		s := tab.Stats()
		if s.Fresh || s.Dropped > 4 {
			t.Errorf("round %d: %d recovered, %d dropped; at most one flow per thread may be torn", round, s.Recovered, s.Dropped)
		}
		recovered += int(s.Recovered)
		tab.All(func(r Ref, e *Entry) bool {
			in, out := e.Reply(), e.Inner()
			a, _ := tab.Lookup(&in)
			b, _ := tab.Lookup(&out)
			if f := e.Flow(); a != r || b != r || f.Task != uint32(f.Inner.SrcPort%7) || f.Rule != uint32(f.Inner.SrcPort) {
				t.Fatalf("round %d: flow %+v is not one that was inserted", round, f)
			}
			return true
		})
		tab.Close()
	}
	if recovered == 0 {
		t.Error("no flow survived in any round")
	}
}

func churnUntilKilled(t *testing.T, cfg Config) {
	c := clock.System()
	tab, err := Open(cfg, c.Mono())
	if err != nil {
		t.Fatal(err)
	}
	for g := range 2 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(g), uint64(os.Getpid())))
			for {
				f := flowOf(protoUDP, 0, uint16(r.IntN(4000)))
				f.Task, f.Rule = uint32(f.Inner.SrcPort%7), uint32(f.Inner.SrcPort)
				ref, _ := tab.Lookup(&f.Inner)
				switch {
				case ref == 0:
					tab.Insert(&f, &dgram, c.Mono())
				case r.IntN(3) == 0:
					tab.Remove(ref)
				default:
					tab.Observe(ref, Inbound, &dgram, c.Mono())
				}
			}
		}()
	}
	os.Stdout.WriteString("churning\n")
	time.Sleep(time.Minute)
	os.Exit(1)
}

func TestCheckDir(t *testing.T) {
	if err := CheckDir("/dev/shm"); err != nil {
		t.Errorf("/dev/shm: %v", err)
	}
	if err := CheckDir("/proc"); !errors.Is(err, ErrNotMemory) {
		t.Errorf("/proc: %v, want ErrNotMemory", err)
	}
	if err := CheckDir("/does/not/exist"); err == nil || errors.Is(err, ErrNotMemory) {
		t.Errorf("missing directory: %v", err)
	}
}

// FuzzOpen opens a table whose memory is garbled: it must be refused, or work.
func FuzzOpen(f *testing.F) {
	cfg := Config{MaxFlows: 8, Secret: [32]byte{1}}
	if err := cfg.fill(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, true)
	f.Add([]byte{0, 16, 0xff, 0, 16, 0x01}, true)
	f.Add([]byte{0, 0, 1}, false)
	f.Fuzz(func(t *testing.T, changes []byte, keepHeader bool) {
		tab, err := openRegion(cfg, newHeapRegion(sizeFor(8)), start)
		if err != nil {
			t.Fatal(err)
		}
		k := &talk{t: t, tab: tab, f: flowOf(protoTCP, 1, 1), now: start, wild: 100}
		k.established()
		for port := range uint16(5) {
			u := flowOf(protoUDP, 1, 10+port)
			tab.Insert(&u, &dgram, start)
		}
		reg := copyOf(tab.region.bytes())
		mem := reg.bytes()
		for ; len(changes) >= 3; changes = changes[3:] {
			at := int(binary.LittleEndian.Uint16(changes)) % len(mem)
			if keepHeader && at < headerSize {
				at = headerSize + at%(len(mem)-headerSize)
			}
			mem[at] ^= changes[2]
		}
		got, err := openRegion(cfg, reg, start)
		if err != nil {
			return
		}
		// Whatever was kept must work like any table.
		got.All(func(r Ref, e *Entry) bool {
			in, out := e.Reply(), e.Inner()
			if a, _ := got.Lookup(&in); a != r {
				t.Errorf("%+v is not found by its reply tuple", e.Flow())
			}
			if b, _ := got.Lookup(&out); b != r {
				t.Errorf("%+v is not found by its inner tuple", e.Flow())
			}
			s := Segment{Flags: ack, Seq: 101, Ack: 501, Len: 10}
			got.Observe(r, Outbound, &s, start)
			got.Observe(r, Inbound, &s, start)
			return true
		})
		n := got.Len()
		for port := range uint16(8) {
			u := flowOf(protoUDP, 2, 100+port)
			if _, why := got.Insert(&u, &dgram, start); why == packet.OK {
				n++
			}
		}
		if got.Len() != n {
			t.Errorf("%d flows, want %d", got.Len(), n)
		}
		got.Sweep(start+Mono(500_000*time.Second), 100)
		if got.Len() != 0 {
			t.Errorf("%d flows outlive the longest timeout", got.Len())
		}
	})
}
