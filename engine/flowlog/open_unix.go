//go:build unix

package flowlog

import (
	"fmt"
	"os"
	"syscall"
)

// openAppend opens path for appending and makes it, mode 0600, if it is not
// there. A symbolic link as the last part of the path is refused (O_NOFOLLOW),
// since whoever may write to the directory could point it anywhere. Pipes are
// opened without waiting for a reader.
func openAppend(path string) (*os.File, error) {
	mode := os.O_RDWR // the last byte of a file is read back, see sink.open
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		if fi.IsDir() || fi.Mode()&(os.ModeSocket|os.ModeSymlink) != 0 {
			return nil, fmt.Errorf("%s: %s is not a file to log to", path, fi.Mode().Type())
		}
		mode = os.O_WRONLY
	}
	return os.OpenFile(path, mode|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
}
