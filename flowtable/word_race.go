//go:build race

package flowtable

import "sync/atomic"

func put64(p *uint64, v uint64) { atomic.StoreUint64(p, v) }
func put32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }
