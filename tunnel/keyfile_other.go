//go:build !unix

package tunnel

import (
	"fmt"
	"io"
	"os"
)

// openNoFollow refuses a symbolic link as the last part of path. There is no
// O_NOFOLLOW here: the check comes before the open.
func openNoFollow(path string, flags int, mode os.FileMode) (*os.File, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSymlink != 0 {
		return nil, fmt.Errorf("open %s: is a symbolic link", path)
	}
	return os.OpenFile(path, flags, mode)
}

// linkNew copies tmp to a file that must not exist yet.
func linkNew(tmp, path string) error {
	in, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
