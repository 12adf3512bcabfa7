package tunnel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// LoadKey reads a private key from a file that StoreKey or `wg genkey` wrote:
// one line of base64. It refuses a symbolic link, anything that is not a
// regular file, and, where files have modes, a file that others than its owner
// may read.
func LoadKey(path string) (PrivateKey, error) {
	f, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return PrivateKey{}, fmt.Errorf("key file %s: not a regular file", path)
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return PrivateKey{}, fmt.Errorf("key file %s: mode is %04o, others can read it: chmod 600 it", path, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key file: %w", err)
	}
	k, err := ParsePrivateKey(strings.TrimSpace(string(b)))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

// StoreKey writes k to a new file with mode 0600 and syncs it. It never
// overwrites: if path exists the error is fs.ErrExist. A crash leaves either
// no file or the whole key.
func StoreKey(path string, k PrivateKey) (err error) {
	if k.IsZero() {
		return errors.New("key file: no key to store")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*") // O_EXCL, mode 0600
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.WriteString(k.Reveal() + "\n"); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	if err := linkNew(tmp.Name(), path); err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	return nil
}

// LoadOrCreateKey is LoadKey, or StoreKey of a new key if there is no file
// yet. Two processes that start together end with the same key.
func LoadOrCreateKey(path string) (PrivateKey, error) {
	k, err := LoadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = GeneratePrivateKey(); err != nil {
		return PrivateKey{}, err
	}
	if err = StoreKey(path, k); errors.Is(err, fs.ErrExist) {
		return LoadKey(path)
	}
	return k, err
}
