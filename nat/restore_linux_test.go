package nat

import (
	"path/filepath"
	"testing"

	"github.com/fe919326/spillway/flowtable"
	"github.com/fe919326/spillway/internal/packet"
	"github.com/fe919326/spillway/internal/testutil/pkt"
)

// TestK1_RestartKeepsPorts: a table that is opened again from its file goes on
// with the same ports, taken ones stay taken, and what ends is given back.
func TestK1_RestartKeepsPorts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows")
	config := flowtable.Config{Path: path, MaxFlows: 1 << 13, MaxFlowsPerTask: 1 << 13}
	var m *Mapper
	config.OnRemove = func(e *flowtable.Entry) { m.Released(e) }
	open := func() *flowtable.Table {
		ft, err := flowtable.Open(config, start)
		if err != nil {
			t.Fatal(err)
		}
		m, err = New(Config{Table: ft, Secret: [32]byte{7}, V4: out4})
		if err != nil {
			t.Fatal(err)
		}
		return ft
	}
	admit := func(i int) (flowtable.Ref, packet.Reason) {
		p := parse(t, pkt.UDP(at(task4, uint16(i)), at(server4, 443), nil))
		var s flowtable.Segment
		flowtable.SegmentOf(p, &s)
		return m.Admit(p, &s, Meta{Task: 3}, start)
	}
	const flows = 4000
	ft := open()
	ports := map[flowtable.Tuple]uint16{}
	for i := range flows {
		ref, r := admit(i)
		if r != packet.OK {
			t.Fatalf("flow %d: %v", i, r)
		}
		e := ft.Entry(ref)
		_, ports[e.Inner()] = e.Outside()
	}
	if err := ft.Close(); err != nil {
		t.Fatal(err)
	}

	ft = open()
	if taken, mine := m.Ports(protoUDP, packet.AddrFrom(server4), 443, 3); taken != flows || mine != flows || ft.Len() != flows {
		t.Fatalf("after the restart %d ports are taken, %d by the task, %d flows; want %d", taken, mine, ft.Len(), flows)
	}
	w := &world{t: t, ft: ft, m: m}
	for i := flows; i < 2*flows; i++ {
		if _, r := admit(i); r != packet.OK {
			t.Fatalf("flow %d after the restart: %v", i, r)
		}
	}
	ft.All(func(_ flowtable.Ref, e *flowtable.Entry) bool {
		if want, ok := ports[e.Inner()]; ok {
			if _, port := e.Outside(); port != want {
				t.Fatalf("%+v had port %d, now %d", e.Inner(), want, port)
			}
		}
		return true
	})
	w.checkTable()
	w.removeAll()
	w.checkEmpty()
	if err := ft.Close(); err != nil {
		t.Error(err)
	}
}
