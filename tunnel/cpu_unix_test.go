//go:build unix

package tunnel

import (
	"syscall"
	"time"
)

// cpuTime returns the CPU time that this process took: unlike wall time it
// means something on a busy machine.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
