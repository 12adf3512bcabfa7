//go:build !unix

package flowlog

import (
	"fmt"
	"os"
)

// openAppend opens path for appending and makes it if it is not there. A
// symbolic link is refused.
func openAppend(path string) (*os.File, error) {
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a file to log to", path, fi.Mode().Type())
	}
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
}
