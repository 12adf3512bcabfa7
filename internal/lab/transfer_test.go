package lab

import (
	"net"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestK6_TransferOverBadWire: a real TCP sends two megabytes each way at once
// while the wire loses, doubles and reorders. Every byte arrives, and the
// endpoint takes not one segment for an invalid one.
func TestK6_TransferOverBadWire(t *testing.T) {
	const size = 2 << 20
	for _, weather := range []struct {
		name     string
		families []int
		w        Weather
	}{
		{"clear", v4v6, Weather{}},
		{"loss", []int{6}, Weather{Loss: 0.05}},
		{"reorder", []int{4}, Weather{Reorder: 0.25, Late: 5 * time.Millisecond, Delay: time.Millisecond}},
		{"everything", v4v6, Weather{Loss: 0.05, Duplicate: 0.2, Reorder: 0.25, Late: 3 * time.Millisecond, Delay: time.Millisecond}},
	} {
		for _, v := range weather.families {
			t.Run(weather.name+map[int]string{4: "/v4", 6: "/v6"}[v], func(t *testing.T) {
				w := newWorld(t)
				w.Wire.Set("host-1", "egress-1", weather.w)
				task, server := newHost(t, w.t[0]), newHost(t, w.server)
				far := make(chan error, 1)
				server.listen(w.server.At(v, 5432), func(c net.Conn) { far <- mirror(c, size) })
				c := task.dial(w.server.At(v, 5432))
				if err := exchange(c, size); err != nil {
					t.Errorf("task: %v", err)
				}
				if err := <-far; err != nil {
					t.Errorf("server: %v", err)
				}
				if n := w.Trace.Resets(); n != 0 {
					t.Errorf("%d resets were seen", n)
				}
				for _, m := range []*Machine{w.host, w.egress} {
					if d := m.Drops(); len(d) != 0 {
						t.Errorf("%s refused %v", m.Name, d)
					}
				}
			})
		}
	}
}

// TestZ42_HostileOffloadState: what a task's device says about its packets
// reaches nobody as a lie: the transfer beside it is not disturbed.
func TestZ42_HostileOffloadState(t *testing.T) {
	w := newWorld(t)
	w.server.Echo()
	super := superSYN(w)
	for _, g := range []packet.GSO{
		{Type: packet.GSOTCP6, Partial: true, HdrLen: 40, Size: 1, CsumStart: 20, CsumOffset: 16},
		{Type: packet.GSOTCP4, Partial: true, HdrLen: 4000, Size: 1, CsumStart: 20, CsumOffset: 16},
		{Type: packet.GSOTCP4, Partial: true, HdrLen: 40, Size: 0, CsumStart: 20, CsumOffset: 16},
		{Type: packet.GSOTCP4, Partial: true, HdrLen: 40, Size: 9, CsumStart: 65535, CsumOffset: 16},
		{Partial: true, CsumStart: 0, CsumOffset: 0},
		{Type: 77, Size: 65535},
	} {
		w.t[1].SendPacket(packet.Packet{Data: super, GSO: g})
	}
	ping(w.t[0], w.server, 4000)
}

// superSYN is a segment with more payload than one packet holds.
func superSYN(w *world) []byte {
	return pkt.TCP(w.t[1].V4(4000), w.server.V4(80), packet.SYN, 1, 0, make([]byte, 4000))
}
