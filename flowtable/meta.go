package flowtable

// meta is the first word of an entry, and the only one that decides whether
// there is a flow in it. It is stored last when a flow is made and first when
// it ends, atomically, so that whoever reads a torn entry reads no flow.
//
//	bits  0-1   phase
//	bit   4     busy: someone holds the entry (see Entry.lock)
//	bits  8-15  state
//	bits 16-23  flags
//	bits 24-31  state before a RST
//	bits 40-63  generation: grows each time a flow is made here
//
// It changes only while busy is held, or from free to live by the goroutine
// that took the entry from the free list.
type meta uint64

const (
	phaseFree meta = 0
	phaseLive meta = 1
	phaseDead meta = 2 // leaving: cannot be found, but can be read
	phaseMask meta = 3

	metaBusy meta = 1 << 4

	metaGenShift = 40
	metaGenMask  = 1<<24 - 1
	// metaUsed are the bits that have a meaning.
	metaUsed meta = phaseMask | metaBusy | 0xffffff<<8 | metaGenMask<<metaGenShift
)

// connFlags are the flags of a flow.
type connFlags uint8

const (
	flagLiberal      connFlags = 1 << iota // window not enforced: picked up mid-stream, or torn by a crash
	flagInsideFirst                        // the task sent the first FIN
	flagOutsideFirst                       // the subnet side sent the first FIN
	flagResetInside                        // the RST came from the task
	flagRevived                            // revived after a RST; the task has not sent since
	flagSynSeen                            // a SYN passed inside an established flow
	flagPicked                             // started mid-stream
)

func (m meta) phase() meta      { return m & phaseMask }
func (m meta) live() bool       { return m&phaseMask == phaseLive }
func (m meta) gen() uint32      { return uint32(m >> metaGenShift) }
func (m meta) state() State     { return State(m >> 8) }
func (m meta) flags() connFlags { return connFlags(m >> 16) }
func (m meta) prior() State     { return State(m >> 24) }

// same reports whether m and o are the same living flow, whatever its state.
func (m meta) same(o meta) bool {
	const id = phaseMask | metaGenMask<<metaGenShift
	return m&id == o&id
}

func (m meta) with(s State, f connFlags, prior State) meta {
	return m&^(0xffffff<<8) | meta(s)<<8 | meta(f)<<16 | meta(prior)<<24
}

func (m meta) in(phase meta) meta { return m&^phaseMask | phase }

// next returns the meta of a new living flow in an entry whose last was m. The
// generation is never 0.
func (m meta) next() meta {
	g := (m.gen() + 1) & metaGenMask
	if g == 0 {
		g = 1
	}
	return meta(g)<<metaGenShift | phaseLive
}
