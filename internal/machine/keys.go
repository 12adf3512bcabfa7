package machine

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/tunnel"
)

// machineKey returns the WireGuard key of a role on this machine, and makes
// it the first time. It never leaves its file, which only its owner can read.
func machineKey(stateDir string, role engine.Role) (tunnel.PrivateKey, error) {
	dir := filepath.Join(stateDir, "keys")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return tunnel.PrivateKey{}, fmt.Errorf("machine key: %w", err)
	}
	key, err := tunnel.LoadOrCreateKey(filepath.Join(dir, string(role)+".key"))
	if err != nil {
		return tunnel.PrivateKey{}, fmt.Errorf("machine key: %w", err)
	}
	return key, nil
}

// PublicKeys returns the WireGuard public keys of the roles that the
// configuration at path gives this machine, and makes the keys the first time.
func PublicKeys(path string) (map[string]string, error) {
	f, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, role := range supervised(f) {
		key, err := machineKey(f.StateDir, role)
		if err != nil {
			return nil, err
		}
		out[string(role)] = key.Public().String()
	}
	return out, nil
}
