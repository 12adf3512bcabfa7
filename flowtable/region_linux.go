package flowtable

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mapping is mapped memory, with the locked file behind it if there is one.
type mapping struct {
	mem   []byte
	file  *os.File // nil if anonymous
	isNew bool
}

func (r *mapping) bytes() []byte { return r.mem }
func (r *mapping) fresh() bool   { return r.isNew }

func (r *mapping) close() error {
	err := unix.Munmap(r.mem)
	if r.file != nil {
		err = errors.Join(err, r.file.Close()) // gives the lock back
	}
	return err
}

func mapAnonymous(size int) (region, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("mmap of %d bytes: %w", size, err)
	}
	adviseHuge(mem)
	return &mapping{mem: mem, isNew: true}, nil
}

// adviseHuge asks for large pages: a random lookup then misses only the caches,
// not the TLB. Kernels that cannot say no, which is fine.
func adviseHuge(mem []byte) { _ = unix.Madvise(mem, unix.MADV_HUGEPAGE) }

// openFile opens or makes the file of a table, locked for this process. check
// says whether the first page of an existing file is worth to be kept; its
// other answers are an error, or errStartOver.
func openFile(path string, size int, check func(page []byte) error) (_ region, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	undo := func() { f.Close() }
	defer func() {
		if err != nil {
			undo()
		}
	}()
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("flock %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fstat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() || st.Nlink > 1 {
		return nil, fmt.Errorf("%s: %w", path, ErrInsecure)
	}
	// A file that does not say it is a table yet is one whose maker died.
	isNew := st.Size == 0
	if !isNew {
		page := make([]byte, headerSize)
		n, _ := f.ReadAt(page, 0)
		switch err := checkPage(page[:n], st.Size, size, check); {
		case errors.Is(err, errStartOver):
			isNew = true
		case err != nil:
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if isNew {
		undo = func() {
			f.Truncate(0) // a half-made table takes no room
			f.Close()
		}
		if err := f.Truncate(0); err != nil {
			return nil, err
		}
		// All of the room now: a full tmpfs later would be a SIGBUS.
		if err := unix.Fallocate(fd, 0, 0, int64(size)); err != nil {
			return nil, fmt.Errorf("fallocate %s, %d bytes: %w", path, size, err)
		}
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %s, %d bytes: %w", path, size, err)
	}
	adviseHuge(mem)
	return &mapping{mem: mem, file: f, isNew: isNew}, nil
}

func checkPage(page []byte, have int64, want int, check func([]byte) error) error {
	if len(page) == headerSize && isZero(page[:8]) && have == int64(want) {
		return errStartOver
	}
	if err := check(page); err != nil {
		return err
	}
	if have != int64(want) {
		return fmt.Errorf("%w: %d bytes, not %d", ErrLayout, have, want)
	}
	return nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// bootID names this boot of the kernel; all zero if it cannot be read.
func bootID() (id [16]byte) {
	p, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(p)), "-", ""))
	if err == nil && len(b) == len(id) {
		copy(id[:], b)
	}
	return id
}

// CheckDir reports whether a table may lie in dir: nil if dir is on a tmpfs or
// ramfs, an error that wraps ErrNotMemory if it is on anything else, where the
// kernel would write the table back to a disk all the time. /dev/shm is a
// tmpfs nearly everywhere.
func CheckDir(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	switch int64(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return nil
	}
	return fmt.Errorf("%s: %w (file system type %#x)", dir, ErrNotMemory, int64(st.Type))
}
