package device

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on the packet path. A TUN descriptor is non-blocking, so none of
// them sleeps, and RawSyscall leaves out the scheduler's bookkeeping: 20 to 45
// of the 850 to 2,200 ns that a packet takes (measured 2026-11, kernel 6.18).
// The price is that a stop of the world waits for the call to end, some tens
// of microseconds for a super-packet.

// readFD reads one packet into b, which is not empty.
func readFD(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

// writevFD writes one packet, given in pieces. iov is not empty; what it
// points to must be reachable until the call returns.
func writevFD(fd int, iov []unix.Iovec) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	return errno
}

// epollNow returns the events that are there, without waiting. SYS_EPOLL_PWAIT
// because arm64 has no SYS_EPOLL_WAIT.
func epollNow(fd int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	return int(n), errno
}
