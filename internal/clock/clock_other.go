//go:build !linux

package clock

import "time"

// start anchors Mono where the system offers no boot time through Go's
// standard library. Go's own monotonic clock stops in suspend on some
// systems: then timers stand still for that long.
var start = time.Now()

func (system) Mono() Mono { return Mono(time.Since(start)) }
