package hostnet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlPath turns "net/ipv4/ip_forward" (slashes, because interface names may
// hold dots) into its file.
func sysctlPath(key string) (string, error) {
	if !strings.HasPrefix(key, "net/") || strings.Contains(key, "..") {
		return "", fmt.Errorf("sysctl %q: must be net/… with slashes", key)
	}
	return filepath.Join("/proc/sys", key), nil
}

// SetSysctl writes a kernel setting inside the namespace. key is written with
// slashes: net/ipv4/conf/eth0/forwarding.
func (n *NS) SetSysctl(key, value string) error {
	return n.SetSysctls([][2]string{{key, value}})
}

// SetSysctls writes several settings, in order, entering the namespace once.
func (n *NS) SetSysctls(kv [][2]string) error {
	return n.Do(func() error {
		for _, e := range kv {
			if err := writeSysctl(e[0], e[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Sysctl reads a kernel setting inside the namespace, without the newline.
func (n *NS) Sysctl(key string) (string, error) {
	p, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	var b []byte
	err = n.Do(func() error {
		b, err = os.ReadFile(p)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl: %w", err)
	}
	return strings.TrimRight(string(b), "\n"), nil
}

// writeSysctl writes a setting in the calling thread's namespace.
func writeSysctl(key, value string) error {
	p, err := sysctlPath(key)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sysctl %s = %s: %w", key, value, err)
	}
	return nil
}
