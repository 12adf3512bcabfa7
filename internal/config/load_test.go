package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGoldenErrors: each file in testdata/errors has the errors that stand in
// the .txt beside it.
func TestGoldenErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Parse(filepath.Base(path), text)
			if f != nil || err == nil {
				t.Fatalf("file %v and error %v: a wrong file must have no effect", f, err)
			}
			got := err.Error() + "\n"
			for i, r := range got {
				if r != '\n' && unsafeRune(r) {
					t.Errorf("unsafe rune %q at %d of the message", r, i)
				}
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("errors differ (-want +got):\n%s", diff)
			}
		})
	}
}

func load(t testing.TB, name string) *File {
	t.Helper()
	f, err := Load(filepath.Join("testdata/good", name))
	if err != nil {
		t.Fatalf("a good file was refused:\n%v", err)
	}
	return f
}

func TestLoadOneMachine(t *testing.T) {
	f := load(t, "one-machine.yaml")
	if got := f.Roles(); !slices.Equal(got, []string{"control", "egress", "host"}) {
		t.Errorf("roles %v, want all three", got)
	}
	if f.Listen.API != "/run/spillway/api.sock" || f.RunDir != "/run/spillway" || f.Timeouts.TCPEstablished != 7440*time.Second {
		t.Errorf("defaults: %+v %s %+v", f.Listen, f.RunDir, f.Timeouts)
	}
	s := f.Subnets[0]
	if s.Egress != "egress-1" || len(s.Ranges) != 2 || s.Interface != "eth1" || s.Claim != "arp" {
		t.Errorf("subnet %+v", s)
	}
	r := f.SecurityGroups[0].Egress[0]
	if r.Protocol != "tcp" || r.FromPort != 5432 || r.ToPort != 5432 || r.CIDR.String() != "10.0.1.0/24" {
		t.Errorf("rule %+v", r)
	}
}

func TestLoadHost(t *testing.T) {
	f := load(t, "host.yaml")
	if got := f.Roles(); !slices.Equal(got, []string{"host"}) || f.Zone != "a" {
		t.Errorf("roles %v zone %q", got, f.Zone)
	}
	if f.Control.Address != "https://10.0.0.5:8443" || f.Control.TokenFile != "/etc/spillway/token" {
		t.Errorf("control %+v", f.Control)
	}
}

func TestLoadAllKeys(t *testing.T) {
	f := load(t, "all-keys.yaml")
	if f.RunDir != "/dev/shm/spillway" || f.Listen.API != "/srv/spillway/api.sock" || f.Account != "acme" {
		t.Errorf("top: %+v", f)
	}
	if !slices.Equal(f.Roles(), []string{"egress", "host"}) || f.HasRole("control") {
		t.Errorf("roles %v", f.Roles())
	}
	if got := f.Timeouts; got.TCPEstablished != 350*time.Second || got.TCPHalfClosed != 2*time.Minute || got.UDPOneWay != 120*time.Second {
		t.Errorf("timeouts %+v", got)
	}
	if got := f.NAT.Ports(); len(got) != 12 || got[0] != 1024 || got[11] != 20010 || f.NAT.Deny != "drop" || f.NAT.UDPMapping != "independent" {
		t.Errorf("nat %+v %v", f.NAT, got)
	}
	// One line of the file stands for every pair of ports and remote side.
	var rules []string
	for _, r := range f.SecurityGroups[0].Egress {
		remote := r.CIDR.String()
		if r.PrefixList != "" {
			remote = "list " + r.PrefixList
		} else if r.Group != "" {
			remote = "group " + r.Group
		}
		rules = append(rules, strings.Join([]string{r.Protocol, PortRange{uint16(r.FromPort), uint16(r.ToPort)}.String(), remote}, " "))
	}
	want := []string{"tcp 5432 10.0.1.0/24",
		"udp 53 10.0.1.2/32", "udp 5000-5010 10.0.1.2/32", "udp 53 fd00:1::2/128", "udp 5000-5010 fd00:1::2/128",
		"tcp 8000-8999 list partners", "tcp 8000-8999 group sg-api",
		"icmp 8-65535 0.0.0.0/0", "icmpv6 128-0 ::/0", "50 0 10.9.0.0/16"}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if s := f.Services[1]; s.Egress != "VPC" {
		t.Errorf("a service with a connector and no egress: %+v", s)
	}
	if s := f.Subnets[2]; s.Account != "other" || s.Claim != "exec:/usr/libexec/spillway/claim-ec2" || s.Egress != "egress-1" {
		t.Errorf("subnet-c %+v", s)
	}
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("directory: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte("machine: m\n#"+strings.Repeat("x", MaxSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(big); err == nil || !strings.Contains(err.Error(), "larger than 1048576 bytes") {
		t.Errorf("large file: %v", err)
	}
	if _, err := Parse("x", []byte("machine: \xff\n")); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("bytes that are no text: %v", err)
	}
}

// Z39: what is nested, aliased or long must cost neither time nor memory.
func TestZ39_HostileFiles(t *testing.T) {
	for name, text := range map[string]string{
		"alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
			"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
		"deep flow":     "machine: " + strings.Repeat("[", 100_000),
		"many errors":   "machine: m\n" + strings.Repeat("x: 1\n", 100_000),
		"many services": "machine: m\nservices: [" + strings.Repeat("{name: a},", 50_000) + "]\n",
		"long key":      strings.Repeat("k", 500_000) + ": 1\n",
		"long value":    "machine: " + strings.Repeat("m", 500_000) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Parse("x.yaml", []byte(text))
			if err == nil {
				t.Fatal("accepted")
			}
			if took := time.Since(start); took > time.Minute { // a bomb would take hours; the machine may be busy
				t.Errorf("took %v", took)
			}
			if len(err.Error()) > 64<<10 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestErrorsCarryTheirPlace(t *testing.T) {
	_, err := Parse("spillway.yaml", []byte("machine: m\nsubnet: []\nzone: A\n"))
	var one *Error
	var all Errors
	if !errors.As(err, &one) || !errors.As(err, &all) || len(all) != 2 {
		t.Fatalf("error %v", err)
	}
	if all[0].Line != 2 || all[0].Col != 1 || all[1].Line != 3 || all[1].Key != "zone" {
		t.Errorf("places %+v %+v", all[0], all[1])
	}
	if want := `spillway.yaml:2:1: unknown key "subnet"; did you mean "subnets"?`; all[0].Error() != want {
		t.Errorf("got %q, want %q", all[0].Error(), want)
	}
}

func TestNearest(t *testing.T) {
	keys := []string{"cidrs", "claim", "interface", "isolate", "security_groups", "zone"}
	for got, want := range map[string]string{"cird": "cidrs", "cidr": "cidrs", "intreface": "interface", "zon": "zone",
		"security_group": "security_groups", "Zone": "zone", "qqqq": "", "groups": "security_groups", "": "", "VPC": ""} {
		if n := nearest(got, keys); n != want {
			t.Errorf("nearest(%q) = %q, want %q", got, n, want)
		}
	}
}

// FuzzLoad: any text gives a file or errors with places inside the text, and
// never both; and what one run says, the next says too.
func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"testdata/good", "testdata/errors"} {
		files, err := filepath.Glob(dir + "/*.yaml")
		if err != nil {
			f.Fatal(err)
		}
		for _, p := range files {
			text, err := os.ReadFile(p)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("f", text)
		if (file == nil) == (err == nil) {
			t.Fatalf("file %v, error %v", file, err)
		}
		var all Errors
		if err != nil && (!errors.As(err, &all) || len(all) == 0) {
			t.Fatalf("error %T %v", err, err)
		}
		lines := strings.Count(string(text), "\n") + strings.Count(string(text), "\r") + strings.Count(string(text), "\u0085") + strings.Count(string(text), "\u2028") + strings.Count(string(text), "\u2029") + 2
		for i, e := range all {
			if e.Line < 0 || e.Line > lines || e.Msg == "" || e.File != "f" {
				t.Fatalf("place of %+v in %d lines", e, lines)
			}
			if i > 0 && e.Line < all[i-1].Line && e.Line != 0 {
				t.Fatalf("errors are not in order: %v", all)
			}
			if strings.ContainsFunc(e.Error(), unsafeRune) {
				t.Fatalf("unsafe message %q", e.Error())
			}
		}
		_, again := Parse("f", text)
		if err != nil && again.Error() != err.Error() {
			t.Fatalf("twice the same text, two answers:\n%v\n%v", err, again)
		}
	})
}
