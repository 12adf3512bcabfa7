package house

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fe919326/spillway"

// pkg is what `go list` tells of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func (p pkg) name() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Doc,Imports,Deps,GoFiles"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// layer is how high a package stands: it may import only what is lower.
func layer(name string) int {
	switch {
	case strings.HasPrefix(name, "cmd/"), strings.HasPrefix(name, "examples/"), strings.HasPrefix(name, "internal/bench"):
		return 9
	case name == "internal/demo", name == "internal/e2e":
		return 8
	case strings.HasPrefix(name, "internal/machine"):
		return 7
	case strings.HasPrefix(name, "internal/lab"):
		return 7
	case name == "internal/config", name == "internal/hostnet":
		return 6
	case name == "internal/ipam":
		return 5
	case name == "engine":
		return 5
	case name == "nat", name == "tunnel", name == "engine/device", name == "engine/policy", name == "engine/flowlog":
		return 3
	case name == "flowtable":
		return 2
	case strings.HasPrefix(name, "internal/packet"), name == "engine/api":
		return 1
	case name == "internal/clock":
		return 0
	}
	return -1
}

// TestImportsPointDown holds the layers apart.
func TestImportsPointDown(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := p.name()
		if name == "internal/house" || strings.HasPrefix(name, "internal/testutil") {
			continue
		}
		own := layer(name)
		if own < 0 {
			t.Errorf("%s stands in no layer: give it one here", name)
		}
		for _, imp := range p.Imports {
			other, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			same := filepath.Dir(other) == filepath.Dir(name) || strings.HasPrefix(other, name+"/") || strings.HasPrefix(name, other+"/")
			switch l := layer(other); {
			case l > own:
				t.Errorf("%s imports %s, which stands above it", name, other)
			case l == own && !same:
				t.Errorf("%s imports %s, which stands beside it", name, other)
			}
		}
	}
}

// only says who alone may import a module, and why.
var only = []struct{ module, importer, why string }{
	{"github.com/vishvananda/netlink", "internal/hostnet", "the kernel's network has one door"},
	{"github.com/vishvananda/netns", "internal/hostnet", "namespaces are entered in one place, which throws bad threads away"},
	{"github.com/google/nftables", "internal/hostnet", "the kernel's network has one door"},
	{"golang.zx2c4.com/wireguard", "tunnel", "the transport can be exchanged"},
	{"github.com/songgao/water", "engine/device", "devices have one door"},
	{"gvisor.dev/gvisor/pkg/tcpip/stack", "engine/netstack", "embedders of the packet path do not link a TCP stack"},
	{"github.com/urfave/cli", "cmd", "the library has no command line"},
}

// TestOneDoorEach: what is dangerous or heavy is imported in one place.
func TestOneDoorEach(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := p.name()
		for _, imp := range p.Imports {
			for _, o := range only {
				lab := strings.HasPrefix(name, "internal/lab") || strings.HasPrefix(name, "internal/bench")
				if strings.HasPrefix(imp, o.module) && !strings.HasPrefix(name, o.importer) && !lab {
					t.Errorf("%s imports %s, only %s may: %s", name, imp, o.importer, o.why)
				}
			}
		}
	}
}

// TestEmbeddersLinkNothingHeavy: whoever imports engine gets the path, not
// the control plane, the kernel's network or the command line.
func TestEmbeddersLinkNothingHeavy(t *testing.T) {
	banned := []string{"go.etcd.io/", "github.com/vishvananda/", "github.com/google/nftables", "github.com/urfave/cli",
		"github.com/miekg/dns", module + "/internal/machine", module + "/internal/config", module + "/internal/hostnet"}
	for _, p := range list(t, "-deps", "./engine", "./nat", "./flowtable", "./tunnel", "./engine/...") {
		for _, b := range banned {
			if strings.HasPrefix(p.ImportPath, b) {
				t.Errorf("the library links %s", p.ImportPath)
			}
		}
	}
	for _, p := range list(t, "./engine/api") {
		for _, d := range p.Imports {
			if strings.Contains(strings.Split(d, "/")[0], ".") {
				t.Errorf("engine/api imports %s: it is for programs with the standard library alone", d)
			}
		}
	}
}

// TestEveryPackageSaysWhatItIs.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.name())
		}
	}
}

// calls says which functions only some packages may call, and why.
var calls = []struct {
	pkg, fn string
	allowed []string // prefixes of package names
	why     string
}{
	{"os", "Exit", []string{"cmd", "internal/bench/cmd", "internal/lab/netlab"}, "a library does not end its program"},
	{"os", "Getenv", []string{"cmd", "internal/bench/cmd", "internal/lab/netlab"}, "configuration has one door"},
	{"signal", "Notify", []string{"cmd", "internal/bench/cmd"}, "signals belong to the program"},
	{"signal", "NotifyContext", []string{"cmd", "internal/bench/cmd"}, "signals belong to the program"},
}

// pathPackages read time only through a clock that tests can move. The flow
// log is not among them: it gives deadlines to files, which the operating
// system measures in real time.
var pathPackages = []string{"engine", "flowtable", "nat", "internal/packet", "engine/device", "engine/policy"}

// TestEnvironmentAndClockHaveOneDoor.
func TestEnvironmentAndClockHaveOneDoor(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := p.name()
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			imported := make(map[string]bool)
			for _, imp := range f.Imports {
				path, _ := strconv.Unquote(imp.Path.Value) // the parser checked it
				imported[filepath.Base(path)] = true
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := sel.X.(*ast.Ident)
				if !ok || !imported[x.Name] {
					return true
				}
				for _, c := range calls {
					allowed := slices.ContainsFunc(c.allowed, func(a string) bool { return strings.HasPrefix(name, a) })
					if x.Name == c.pkg && sel.Sel.Name == c.fn && !allowed {
						t.Errorf("%s: %s.%s: %s", fset.Position(n.Pos()), c.pkg, c.fn, c.why)
					}
				}
				if x.Name == "time" && sel.Sel.Name == "Now" && slices.Contains(pathPackages, name) {
					t.Errorf("%s: time.Now: the path takes a clock.Clock", fset.Position(n.Pos()))
				}
				return true
			})
		}
	}
}
