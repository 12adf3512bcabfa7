package device

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/packet"
)

// Read implements Link. Ports that are ready are drained in turn, one read(2)
// per packet straight into b, until none is ready or b is full. It returns
// what it has rather than wait for more.
func (g *Group) Read(b *Batch) error {
	g.readMu.Lock()
	defer g.readMu.Unlock()
	b.Reset()
	for !g.closed.Load() {
		if int64(g.ready.n) < g.ports.Load() {
			if g.conn.Control(g.look) != nil {
				break
			}
		}
		g.fill(b)
		if len(b.Packets) > 0 {
			return nil
		}
		if g.ready.n > 0 {
			continue // what was read was all refused
		}
		if err := g.conn.Read(g.wait); err != nil {
			break
		}
	}
	return os.ErrClosed
}

// waitReady is the callback of the poller's Read: false means sleep until
// there are events.
func (g *Group) waitReady(epfd uintptr) bool {
	g.poll(epfd)
	return g.found > 0
}

// poll moves the ports that epoll knows to be ready to the ready list. It runs
// under the poller's RawConn, so that epfd stays what it is meanwhile.
func (g *Group) poll(epfd uintptr) {
	g.found = 0
	for {
		n, errno := epollNow(int(epfd), g.events[:])
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			return
		}
		g.mu.RLock()
		for i := range g.events[:n] {
			ev := &g.events[i]
			if p := g.byNum[uint32(ev.Fd)]; p != nil && p.serial == ev.Pad {
				g.ready.push(p)
			}
		}
		g.mu.RUnlock()
		g.found += n
		if n < len(g.events) {
			return
		}
	}
}

// fill drains the ready ports into b.
func (g *Group) fill(b *Batch) {
	// Each port that is ready now has one turn, then again from the first:
	// until b is full or the list is empty.
	for {
		p := g.ready.pop()
		if p == nil {
			return
		}
		packets, bytes := g.quantum, turnBytes
		if g.ready.n == 0 {
			packets, bytes = packet.MaxBatch, packet.ArenaSize // nobody waits
		}
		before := len(b.Packets)
		switch g.drain(p, b, packets, bytes) {
		case portEmpty:
		case turnOver:
			g.ready.push(p)
			if len(b.Packets) == before {
				return // all refused: what is there must not wait for a flood
			}
		case batchFull:
			g.ready.push(p)
			return
		}
	}
}

// outcome says why a turn ended.
type outcome uint8

const (
	portEmpty outcome = iota // nothing to read; epoll will tell
	turnOver                 // its share is read
	batchFull                // no room
)

// drain reads up to so many packets and about so many bytes from p into b.
func (g *Group) drain(p *port, b *Batch, packets, bytes int) outcome {
	fd, ok := p.tun.fd.acquire()
	if !ok {
		return portEmpty
	}
	end, broken := turnOver, unix.Errno(0)
	front, size := p.tun.front, 0 // size counts what was refused too
	kept, keptBytes, segments := 0, 0, 0
	for range packets {
		if size >= bytes {
			break
		}
		room := b.ReserveFrom(front, packet.MaxPacket)
		if room == nil {
			end = batchFull
			break
		}
		n, errno := readFD(fd, room)
		if errno != 0 {
			if errno == unix.EINTR {
				continue
			}
			if errno == unix.EAGAIN {
				end = portEmpty
				break
			}
			p.stats.drops[packet.DeviceError].Add(1)
			if errno == unix.EINVAL || errno == unix.ENOMEM || errno == unix.ENOBUFS {
				continue // this packet cannot be told; the next may
			}
			end, broken = portEmpty, errno
			break
		}
		if n == 0 {
			end, broken = portEmpty, unix.ENODEV // no interface reads as an end of file
			break
		}
		if n <= front {
			p.stats.drops[packet.Truncated].Add(1)
			continue
		}
		var gso packet.GSO
		if front > 0 {
			if r := decodeVnet(room[:front], room[front:n], &gso); r != packet.OK {
				p.stats.drops[r].Add(1)
				size += n
				continue
			}
		}
		pk := b.Commit(n - front)
		pk.GSO, pk.Port = gso, p.num
		kept++
		keptBytes += n - front
		size += n
		segments += gso.Segments(n - front - int(gso.HdrLen))
	}
	p.tun.fd.release()
	if kept > 0 {
		p.stats.readPackets.Add(uint64(kept))
		p.stats.readSegments.Add(uint64(segments))
		p.stats.readBytes.Add(uint64(keptBytes))
	}
	if broken != 0 {
		g.fail(p, broken)
	}
	return end
}
