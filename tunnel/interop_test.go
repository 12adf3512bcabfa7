package tunnel

import (
	"bytes"
	"strconv"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// A stock wireguard-go device that knows nothing of us but UAPI is a peer like
// any other, both ways and through a super-packet.
func TestInteropWithPlainDevice(t *testing.T) {
	ch := tuntest.NewChannelTUN()
	key := testKey(t)
	dev, port := plainDevice(t, ch.TUN(), key)
	e := newEnd(t, Config{}).run()
	uapiPeer(t, dev, e.PublicKey(), strconv.Itoa(e.ListenPort()), "10.2.0.0/16", "fd02::/32")
	e.set(Peer{ID: 3, PublicKey: key.Public(), Addr: mustAddrPort(t, "127.0.0.1:"+port), AllowedIPs: prefixes("10.1.0.0/16", "fd01::/32")})

	want := udp("10.1.0.1", "10.2.0.1", []byte("from a stranger"))
	ch.Outbound <- want
	e.collect(func(pk *packet.Packet) bool {
		if !bytes.Equal(pk.Data, want) || pk.Peer != 3 {
			t.Errorf("got %x from peer %d", pk.Data, pk.Peer)
		}
		return false
	})
	payload := make([]byte, 10*1340)
	for i := range payload {
		payload[i] = byte(i)
	}
	b := packet.NewBatch()
	tcp(b, "fd02::1", "fd01::1", 0, payload, 1340)
	e.Seal(b)
	got := make([]byte, len(payload))
	for range 10 {
		select {
		case data := <-ch.Inbound:
			p, seq := payloadOf(t, &packet.Packet{Data: data})
			copy(got[seq:], p)
		case <-time.After(10 * time.Second):
			t.Fatal("the plain device got nothing")
		}
	}
	if !bytes.Equal(got, payload) {
		t.Error("bytes changed on the way")
	}
}
