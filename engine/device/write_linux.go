package device

import (
	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
)

// maxWriters bounds the idle scratch space that a group keeps: more than
// workers.
const maxWriters = 16

// writer is the scratch space of one Write.
type writer struct {
	g    *Group
	pkts []packet.Packet // of this round
	cars coalescer
	hdr  [vnetLen + maxTrainHdr]byte
	iov  [packet.MaxBatch + 1]unix.Iovec
	seg  packet.Segmenter
	cut  []byte // vnetLen and one segment; made when first needed
}

func (g *Group) getWriter() *writer {
	g.writersMu.Lock()
	defer g.writersMu.Unlock()
	if n := len(g.writers); n > 0 {
		w := g.writers[n-1]
		g.writers = g.writers[:n-1]
		return w
	}
	return &writer{g: g}
}

func (g *Group) putWriter(w *writer) {
	w.pkts = nil
	g.writersMu.Lock()
	defer g.writersMu.Unlock()
	if len(g.writers) < maxWriters {
		g.writers = append(g.writers, w)
	}
}

// Write implements Link. Packets of one flow leave in the order they have in
// b; packets of different flows may pass each other.
func (g *Group) Write(b *Batch) {
	w := g.getWriter()
	for rest := b.Packets; len(rest) > 0; {
		n := min(len(rest), packet.MaxBatch)
		w.pkts = rest[:n]
		w.round()
		rest = rest[n:]
	}
	g.putWriter(w)
}

// round sends w.pkts.
func (w *writer) round() {
	var p *port
	var c car
	for i := range w.pkts {
		pk := &w.pkts[i]
		if len(pk.Data) == 0 {
			continue
		}
		if p == nil || p.num != pk.Port || p.down.Load() {
			if p = w.g.lookup(pk.Port); p == nil {
				w.g.noRoute.Add(1)
				continue
			}
		}
		classify(pk, &c)
		if c.flow == 0 {
			if c.barrier {
				w.flushBetween(pk)
			}
			w.send(p, pk)
			continue
		}
		if t := w.cars.find(p.num, c.flow); t != nil {
			if w.cars.join(t, w.pkts, i, &c) {
				if t.full(&c) {
					w.flush(t)
				}
				continue
			}
			w.flush(t)
		}
		if c.kind == packet.GSONone || c.last || !p.tun.takes(c.kind) {
			w.send(p, pk)
			continue
		}
		if w.cars.open == maxTrains {
			w.flush(w.cars.evict())
		}
		w.cars.start(p.num, pk, i, &c)
	}
	for w.cars.open > 0 {
		w.flush(&w.cars.trains[0])
	}
}

// flushBetween sends the trains between the addresses of pk.
func (w *writer) flushBetween(pk *packet.Packet) {
	for i := w.cars.open - 1; i >= 0; i-- {
		t := &w.cars.trains[i]
		if t.port == pk.Port && sameAddresses(w.pkts[t.head].Data, pk.Data) {
			w.flush(t)
		}
	}
}

// flush sends train t and forgets it.
func (w *writer) flush(t *train) {
	defer w.cars.remove(t)
	p := w.g.lookup(t.port)
	if p == nil {
		w.g.noRoute.Add(uint64(t.n))
		return
	}
	first := &w.pkts[t.head]
	if t.n == 1 {
		w.send(p, first)
		return
	}
	n := t.headers(w.hdr[:], p.tun.front, first.Data, w.pkts[t.tail].Data)
	w.iov[0].Base = &w.hdr[0]
	w.iov[0].SetLen(n)
	k := 1
	for i := t.head; i != noPacket; i = w.cars.next[i] {
		payload := w.pkts[i].Data[t.hdrLen:]
		w.iov[k].Base = &payload[0]
		w.iov[k].SetLen(len(payload))
		k++
	}
	errno := w.writev(p, k)
	if errno == 0 {
		p.stats.writePackets.Add(1)
		p.stats.writeSegments.Add(uint64(t.n))
		p.stats.writeBytes.Add(uint64(t.length))
		p.stats.merged.Add(uint64(t.n))
		return
	}
	if errno == unix.EINVAL {
		// We made it, so it was right: this kernel does not take its kind.
		p.tun.refuse(t.kind)
		p.stats.fallbacks.Add(1)
		for i := t.head; i != noPacket; i = w.cars.next[i] {
			w.send(p, &w.pkts[i])
		}
		return
	}
	w.lost(p, errno, t.n)
}

// send writes one packet, or one super-packet, as it is; where the interface
// does not take it so, as the packets it stands for.
func (w *writer) send(p *port, pk *packet.Packet) {
	if pk.GSO.Type != packet.GSONone && !p.tun.takes(pk.GSO.Type) || p.tun.front == 0 && pk.GSO.Partial {
		w.sendCut(p, pk)
		return
	}
	k := 0
	if p.tun.front > 0 {
		encodeVnet(w.hdr[:p.tun.front], &pk.GSO)
		w.iov[0].Base = &w.hdr[0]
		w.iov[0].SetLen(p.tun.front)
		k = 1
	}
	w.iov[k].Base = &pk.Data[0]
	w.iov[k].SetLen(len(pk.Data))
	segments := 1
	if pk.GSO.Type != packet.GSONone {
		segments = pk.GSO.Segments(len(pk.Data) - int(pk.GSO.HdrLen))
	}
	switch errno := w.writev(p, k+1); {
	case errno == 0:
		p.stats.writePackets.Add(1)
		p.stats.writeSegments.Add(uint64(segments))
		p.stats.writeBytes.Add(uint64(len(pk.Data)))
	case errno == unix.EINVAL && pk.GSO.Type != packet.GSONone:
		// Whoever made it may have lied: that says nothing about the kernel.
		p.stats.fallbacks.Add(1)
		w.sendCut(p, pk)
	default:
		w.lost(p, errno, segments)
	}
}

// sendCut writes pk as ordinary packets with complete checksums.
func (w *writer) sendCut(p *port, pk *packet.Packet) {
	if w.cut == nil {
		w.cut = make([]byte, vnetLen+packet.MaxPacket)
	}
	clear(w.cut[:vnetLen]) // no offload
	if r := w.seg.Start(pk); r != packet.OK {
		p.stats.drops[r].Add(1)
		return
	}
	for more := true; more; {
		var n int
		if n, more = w.seg.Next(w.cut[vnetLen:]); n == 0 {
			return // nothing left
		}
		w.iov[0].Base = &w.cut[vnetLen-p.tun.front]
		w.iov[0].SetLen(p.tun.front + n)
		if errno := w.writev(p, 1); errno != 0 {
			w.lost(p, errno, 1)
			continue
		}
		p.stats.writePackets.Add(1)
		p.stats.writeSegments.Add(1)
		p.stats.writeBytes.Add(uint64(n))
	}
}

// writev writes the packet in the first k pieces of w.iov to p.
func (w *writer) writev(p *port, k int) unix.Errno {
	fd, ok := p.tun.fd.acquire()
	if !ok {
		return unix.EBADF
	}
	defer p.tun.fd.release()
	for {
		if errno := writevFD(fd, w.iov[:k]); errno != unix.EINTR {
			return errno
		}
	}
}

// lost counts packets that the kernel did not take, and gives the port up if
// its interface is gone. An interface that is down (EIO) may come back.
func (w *writer) lost(p *port, errno unix.Errno, n int) {
	p.stats.drops[packet.DeviceError].Add(uint64(n))
	if errno == unix.EBADFD || errno == unix.ENODEV {
		w.g.fail(p, errno)
	}
}
