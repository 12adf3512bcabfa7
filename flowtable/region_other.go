//go:build !linux

package flowtable

import (
	"errors"
	"fmt"
)

func mapAnonymous(size int) (region, error) { return newHeapRegion(size), nil }

func openFile(path string, _ int, _ func([]byte) error) (region, error) {
	return nil, fmt.Errorf("%s: a flow table in a file needs Linux: %w", path, errors.ErrUnsupported)
}

func bootID() (id [16]byte) { return id }

// CheckDir always refuses: tables in files are for Linux only.
func CheckDir(dir string) error {
	return fmt.Errorf("%s: a flow table in a file needs Linux: %w", dir, errors.ErrUnsupported)
}
