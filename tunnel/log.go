package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fe919326/spillway/internal/clock"
	"golang.zx2c4.com/wireguard/device"
)

// logEvery lets one error line through per this time: the device logs an error
// per failed send, at packet rate if it must.
const logEvery = 100 * time.Millisecond

// deviceLogger passes the device's lines on: its verbose ones as debug, its
// errors as warnings. The device never prints a key but as its first and last
// characters.
func deviceLogger(l *slog.Logger, c clock.Clock) *device.Logger {
	var next, skipped atomic.Int64
	ctx := context.Background()
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if l.Enabled(ctx, slog.LevelDebug) {
				l.Debug("wireguard: " + fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			if !l.Enabled(ctx, slog.LevelWarn) {
				return
			}
			now, at := int64(c.Mono()), next.Load()
			if now < at || !next.CompareAndSwap(at, now+int64(logEvery)) {
				skipped.Add(1)
				return
			}
			l.Warn("wireguard: "+fmt.Sprintf(format, args...), "skipped", skipped.Swap(0))
		},
	}
}
