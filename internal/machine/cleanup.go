package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/internal/hostnet"
)

// defaultRunDir is where sockets and task lists lie without a configuration.
const defaultRunDir = "/run/spillway"

// Cleanup removes what a spillway that no longer runs left in the kernel: in
// this namespace, in those of the tasks it wrote down, in those of its
// subnets, and in extra. It returns what it removed, in words.
func Cleanup(configPath string, extra []string) (removed []string, err error) {
	runDir, socket := defaultRunDir, filepath.Join(defaultRunDir, "api.sock")
	if configPath != "" {
		f, err := config.Load(configPath)
		if err != nil {
			return nil, err
		}
		runDir, socket = f.RunDir, f.Listen.API
	}
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		return nil, fmt.Errorf("a spillway runs here (%s answers): end it first", socket)
	}
	var errs []error
	clean := func(ns *hostnet.NS, name string) {
		list, err := hostnet.Cleanup(ns)
		for _, r := range list {
			removed = append(removed, r+" in "+name)
		}
		errs = append(errs, err, ns.Close())
	}

	var tasks []*attached
	if err := readJSON(filepath.Join(runDir, "tasks.json"), &tasks); err != nil {
		errs = append(errs, err)
	}
	for _, t := range tasks {
		ns, err := openNamespace(t.Request)
		if err != nil {
			continue // the namespace has gone, and what was in it
		}
		clean(ns, "task "+t.Task.ID)
	}
	for _, path := range extra {
		ns, err := hostnet.OpenNS(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		clean(ns, path)
	}
	subnets, err := os.ReadDir(subnetNamespaces(runDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, s := range subnets {
		path := filepath.Join(subnetNamespaces(runDir), s.Name())
		errs = append(errs, hostnet.DeleteNS(path))
		removed = append(removed, "namespace of subnet "+s.Name())
	}
	here, err := hostnet.CurrentNS()
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	clean(here, "this namespace")

	files, _ := filepath.Glob(filepath.Join(runDir, "*")) // the pattern is well formed
	for _, f := range files {
		base := filepath.Base(f)
		if base == "tasks.json" || strings.HasPrefix(base, "inner-") || strings.HasPrefix(base, "peers-") || strings.HasSuffix(base, ".sock") {
			errs = append(errs, os.Remove(f))
			removed = append(removed, f)
		}
	}
	if dir, err := tableDir(runDir); err == nil {
		errs = append(errs, os.RemoveAll(dir))
		removed = append(removed, dir)
	}
	return removed, errors.Join(errs...)
}

// subnetNamespaces is where the namespaces of subnets are bound.
func subnetNamespaces(runDir string) string { return filepath.Join(runDir, "subnets") }
