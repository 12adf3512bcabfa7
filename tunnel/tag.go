package tunnel

import "encoding/binary"

// A tag is a note that we write into a buffer which the device lent to us,
// behind the packet, and read back when the same buffer comes out at the other
// end of the device. It is how we know exactly which packets have left.
//
// On the way out the virtual TUN's Read writes (peer, number) and the UDP
// socket's Send finds it; on the way in the socket's receive function writes
// (session index, number) and the TUN's Write finds it. In between the device
// encrypts or decrypts in place and queues per peer in order, so the highest
// number that came out stands for all before it, lost ones included.
//
// A missing or stale tag does no harm: numbers never go back, and what never
// comes out is written off by the gates.
const (
	tagSize = 16
	tagTx   = 0x5f770dd1
	tagRx   = 0x5f770dd2
)

// tagger knows where a buffer has its tag: right behind the largest packet of
// the MTU, which is on a page that the packet touches anyway, else at the end.
type tagger struct {
	near int
}

// What WireGuard adds to a packet at most, in bytes: in front its header,
// behind padding to 16 and the authentication tag.
const (
	transportHeader  = 16
	transportTrailer = 15 + 16
)

func newTagger(mtu int) tagger {
	return tagger{near: (transportHeader + mtu + transportTrailer + 63) &^ 63}
}

// at returns the tag's place in buf if the first used bytes are taken, nil if
// there is none.
func (t tagger) at(buf []byte, used int) []byte {
	buf = buf[:cap(buf)]
	off := t.near
	if used > off {
		off = len(buf) - tagSize
	}
	if used > off || off+tagSize > len(buf) {
		return nil
	}
	return buf[off : off+tagSize]
}

func putTag(b []byte, kind, id uint32, seq uint64) {
	if b == nil {
		return
	}
	_ = b[15]
	binary.LittleEndian.PutUint32(b[0:], kind)
	binary.LittleEndian.PutUint32(b[4:], id)
	binary.LittleEndian.PutUint64(b[8:], seq)
}

func getTag(b []byte, kind uint32) (id uint32, seq uint64, ok bool) {
	if b == nil || binary.LittleEndian.Uint32(b) != kind {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint64(b[8:]), true
}
