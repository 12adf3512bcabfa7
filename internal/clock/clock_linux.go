package clock

import "golang.org/x/sys/unix"

func (system) Mono() Mono {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// CLOCK_BOOTTIME is in every Linux since 2.6.39: without it no timer
		// can be right, and going on would fail open.
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error())
	}
	return Mono(ts.Nano())
}
