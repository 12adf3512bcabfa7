package tunnel

import (
	"testing"

	"github.com/fe919326/spillway/internal/packet"
)

// What we own of the path allocates nothing per packet: Seal, the cutting into
// the device's buffers, the count at the socket, the way back in to Open.
func TestNoAllocs(t *testing.T) {
	for _, c := range []struct{ name, src, dst string }{
		{"v4", "10.1.0.1", "10.2.0.1"},
		{"v6", "fd01::1", "fd02::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnd(t, Config{})
			key := testKey(t).Public()
			e.set(Peer{ID: 9, PublicKey: key, AllowedIPs: prefixes("10.0.0.0/8", "fd00::/8")})
			e.peers[key].moving.Store(true)
			e.rx.gate.learn(1)

			super := packet.NewBatch()
			tcp(super, c.src, c.dst, 1, make([]byte, 45*1360), 1360)
			b, back := packet.NewBatch(), packet.NewBatch()
			bufs, sizes := make([][]byte, deviceBatch), make([]int, deviceBatch)
			for i := range bufs {
				bufs[i] = make([]byte, 65535)
			}
			wire := make([][]byte, 0, deviceBatch)
			in := make([][]byte, 0, deviceBatch)
			got := 0
			allocs := testing.AllocsPerRun(100, func() {
				b.Append(super.Packets[0].Data).GSO = super.Packets[0].GSO
				e.Seal(b)
				n, err := e.tun.Read(bufs, sizes, 16)
				if err != nil || n != 45 {
					t.Fatalf("Read: %d, %v", n, err)
				}
				// What the device makes of them, without the crypto.
				wire, in = wire[:0], in[:0]
				for i, buf := range bufs[:n] {
					msg := buf[: 16+sizes[i]+16 : len(buf)]
					copy(msg, []byte{messageTransport, 0, 0, 0, 1, 0, 0, 0})
					wire = append(wire, msg)
					in = append(in, buf[:16+sizes[i]])
					sizes[i] = len(msg)
				}
				p, seq := e.bind.newest(wire)
				if p == nil {
					t.Fatal("the socket does not know its packets")
				}
				e.bind.tx.left(p, seq)
				if r := e.rx.gate.received(e.bind.tag, bufs, sizes[:n]); r != 0 {
					t.Fatalf("%d refused", r)
				}
				if _, err := e.tun.Write(in, 16); err != nil {
					t.Fatal(err)
				}
				if err := e.Open(back); err != nil {
					t.Fatal(err)
				}
				got += len(back.Packets)
			})
			if allocs != 0 {
				t.Errorf("%v allocations for a super-packet of 45", allocs)
			}
			if got != 101*45 {
				t.Errorf("%d packets came around, want %d", got, 101*45)
			}
			if st := e.Stats(); st.TxInFlight != 0 || st.RxInFlight != 0 {
				t.Errorf("the gates did not see them leave: %+v", st)
			}
		})
	}
}
