//go:build unix

package tunnel

import (
	"os"
	"syscall"
)

// openNoFollow refuses a symbolic link as the last part of path, and does not
// block on a FIFO that somebody put there.
func openNoFollow(path string, flags int, mode os.FileMode) (*os.File, error) {
	return os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, mode)
}

// linkNew gives tmp the name path unless that exists: link(2) neither
// overwrites nor follows.
func linkNew(tmp, path string) error { return os.Link(tmp, path) }
