package tunnel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fe919326/spillway/internal/packet"
)

func TestSetPeersRefuses(t *testing.T) {
	e := newEnd(t, Config{})
	a, b := testKey(t).Public(), testKey(t).Public()
	good := Peer{Name: "good", ID: 1, PublicKey: a, AllowedIPs: prefixes("10.0.0.0/16", "10.0.1.0/24", "fd00::/64")}
	e.set(good)
	for _, c := range []struct {
		name string
		peer Peer
		want string
	}{
		{"no key", Peer{ID: 2}, "no public key"},
		{"own key", Peer{ID: 2, PublicKey: e.PublicKey()}, "our own"},
		{"no ID", Peer{PublicKey: b}, "ID is 0"},
		{"same ID", Peer{ID: 1, PublicKey: b}, "same ID"},
		{"same key", Peer{ID: 2, PublicKey: a}, "same public key"},
		{"overlap inside", Peer{ID: 2, PublicKey: b, AllowedIPs: prefixes("10.0.9.0/24")}, "overlap"},
		{"overlap around", Peer{ID: 2, PublicKey: b, AllowedIPs: prefixes("0.0.0.0/0")}, "overlap"},
		{"overlap equal", Peer{ID: 2, PublicKey: b, AllowedIPs: prefixes("fd00::/64")}, "overlap"},
		{"overlap v6", Peer{ID: 2, PublicKey: b, AllowedIPs: prefixes("::/0")}, "overlap"},
		{"no prefix", Peer{ID: 2, PublicKey: b, AllowedIPs: make([]netip.Prefix, 1)}, "no prefix"},
		{"half mapped", Peer{ID: 2, PublicKey: b, AllowedIPs: prefixes("::ffff:0:0/90")}, "mixes"},
		{"keepalive", Peer{ID: 2, PublicKey: b, Keepalive: 1500 * time.Millisecond}, "whole seconds"},
		{"port 0", Peer{ID: 2, PublicKey: b, Addr: netip.MustParseAddrPort("192.0.2.1:0")}, "nobody listens"},
	} {
		err := e.SetPeers([]Peer{good, c.peer})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v does not say %q", c.name, err, c.want)
		}
		if strings.HasPrefix(c.name, "overlap") && !errors.Is(err, ErrOverlap) {
			t.Errorf("%s: %v is no ErrOverlap", c.name, err)
		}
	}
	st := e.Peers()
	if len(st) != 1 || st[0].Name != "good" || st[0].ID != 1 {
		t.Fatalf("a refused change changed something: %+v", st)
	}
}

// Peers that were set before Run are there when it is up.
func TestSetPeersBeforeRun(t *testing.T) {
	host, egress := newEnd(t, Config{}), newEnd(t, Config{}).run()
	egress.set(Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("::ffff:10.1.0.0/112")})
	host.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16"), Keepalive: time.Second})
	host.run()
	waitFor(t, "the handshake that the keepalive makes", func() bool { return !egress.Peers()[0].LastHandshake.IsZero() })
	warm(t, host, egress, "10.1.0.1", "10.2.0.1")
}

// Peers and prefixes come, go and move under traffic. What stays keeps its
// session, what is gone is deaf at once, and no packet is ever said to come
// from a peer that did not send it.
func TestLiveChanges(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	other := newEnd(t, Config{}).run()
	hostPeer := Peer{Name: "host", ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")}
	otherPeer := Peer{Name: "other", ID: 8, PublicKey: other.PublicKey(), AllowedIPs: prefixes("10.3.0.0/16")}
	egress.set(hostPeer, otherPeer)
	other.set(Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")})
	warm(t, other, egress, "10.3.0.1", "10.2.0.1")
	handshake := egress.Peers()[0].LastHandshake

	// Both send from 10.9.0.1 all the time; it belongs to one of them, the
	// other, or nobody. Packets say who sent them.
	var wrong, fromHost, fromOther atomic.Int64
	drained := egress.drain(func(pk *packet.Packet) {
		payload, _ := payloadOf(t, pk)
		switch {
		case string(payload) == "host" && pk.Peer == 7:
			fromHost.Add(1)
		case string(payload) == "other" && pk.Peer == 8:
			fromOther.Add(1)
		default:
			wrong.Add(1)
		}
	})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range []struct {
		e    *end
		name string
	}{{host, "host"}, {other, "other"}} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s.e.seal(udp("10.9.0.1", "10.2.0.1", []byte(s.name)), udp("10.9.0.1", "10.2.0.2", []byte(s.name)))
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		h, o := hostPeer, otherPeer
		h.AllowedIPs = append(prefixes("10.1.0.0/16"), prefixes(fmt.Sprintf("10.100.%d.0/24", i%250))...)
		peers := []Peer{h, o}
		switch rng.IntN(4) {
		case 0:
			peers[0].AllowedIPs = append(peers[0].AllowedIPs, prefixes("10.9.0.0/24")...)
		case 1:
			peers[1].AllowedIPs = append(peers[1].AllowedIPs[:1:1], prefixes("10.9.0.0/24")...)
		case 2:
			if i%10 == 0 {
				egress.set(h) // the other is gone, and comes back with no session
				egress.set(peers...)
				if err := other.Renew(9); err != nil {
					t.Error(err)
				}
			}
		}
		began := time.Now()
		egress.set(peers...)
		if d := time.Since(began); d > time.Second {
			t.Errorf("change took %v", d)
		}
		time.Sleep(2 * time.Millisecond)
	}
	hostPeer.AllowedIPs = prefixes("10.1.0.0/16", "10.9.0.0/24")
	egress.set(hostPeer)
	n := fromHost.Load()
	waitFor(t, "the host's packets", func() bool { return fromHost.Load() > n+10 })
	if now := egress.Peers()[0].LastHandshake; !now.Equal(handshake) {
		t.Errorf("a peer that stayed made a new handshake: %v, then %v", handshake, now)
	}
	if wrong.Load() != 0 {
		t.Errorf("%d packets were said to come from the wrong peer", wrong.Load())
	}
	if fromOther.Load() == 0 {
		t.Error("the other peer never had its turn")
	}

	// Removal: deaf within milliseconds.
	egress.set()
	time.Sleep(20 * time.Millisecond)
	n = fromHost.Load()
	time.Sleep(50 * time.Millisecond)
	if fromHost.Load() != n {
		t.Error("packets of a removed peer still come in")
	}
	close(stop)
	wg.Wait()
	waitFor(t, "the gates to be empty", func() bool {
		st := egress.Stats()
		return st.TxInFlight == 0 && st.TxWaiting == 0
	})
	egress.stop()
	drained()
}

// The address of a peer changes: traffic follows at once.
func TestPeerMoves(t *testing.T) {
	key := testKey(t)
	host, first := newEnd(t, Config{}).run(), newEnd(t, Config{PrivateKey: key}).run()
	back := Peer{ID: 7, PublicKey: host.PublicKey(), AllowedIPs: prefixes("10.1.0.0/16")}
	first.set(back)
	p := Peer{ID: 9, PublicKey: key.Public(), Addr: first.addr(), AllowedIPs: prefixes("10.2.0.0/16")}
	host.set(p)
	warm(t, host, first, "10.1.0.1", "10.2.0.1")
	second := newEnd(t, Config{PrivateKey: key}).run()
	second.set(back)
	p.Addr = second.addr()
	host.set(p)
	if err := host.Renew(9); err != nil {
		t.Fatal(err)
	}
	warm(t, host, second, "10.1.0.1", "10.2.0.1")
	if a := host.Peers()[0].Addr; a != second.addr() {
		t.Errorf("status says %v, want %v", a, second.addr())
	}
}

// A peer that cannot be reached holds a bounded number of packets and does not
// slow another down.
func TestPeerWithoutSessionStallsNobody(t *testing.T) {
	host, egress := twoEnds(t, patient, patient)
	nobody := mustAddrPort(t, "127.0.0.1:9") // discard
	host.set(
		Peer{ID: 9, PublicKey: egress.PublicKey(), Addr: egress.addr(), AllowedIPs: prefixes("10.2.0.0/16")},
		Peer{Name: "dead", ID: 10, PublicKey: testKey(t).Public(), Addr: nobody, AllowedIPs: prefixes("10.5.0.0/16")})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := packet.NewBatch()
		for {
			select {
			case <-stop:
				return
			default:
			}
			tcp(b, "10.1.0.1", "10.5.0.1", 1, make([]byte, 45*1360), 1360)
			host.Seal(b)
		}
	})
	began := time.Now()
	stream(t, host, egress, "10.1.0.1", "10.2.0.1", 7, 4<<20, 45*1360, 1360)
	t.Logf("4 MB beside a dead peer took %v", time.Since(began))
	close(stop)
	wg.Wait()
	st, peers := host.Stats(), host.Peers()
	if st.Dropped[packet.TunnelDown] == 0 || peers[1].Unsent == 0 {
		t.Error("nothing was counted as dropped for the dead peer")
	}
	if peers[1].Queued > 70 {
		t.Errorf("%d packets are held for the dead peer", peers[1].Queued)
	}
}

// Two peers' sessions and a removal in the middle of a blast through a full
// ring: nothing hangs.
func TestRemoveUnderBlastWithFullRing(t *testing.T) {
	host, egress := twoEnds(t, Config{}, Config{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := packet.NewBatch()
		for {
			select {
			case <-stop:
				return
			default:
			}
			tcp(b, "10.1.0.1", "10.2.0.1", 1, make([]byte, 45*1360), 1360)
			host.Seal(b)
		}
	})
	waitFor(t, "a full ring", func() bool { return egress.Stats().Dropped[packet.QueueFull] > 1000 })
	began := time.Now()
	egress.set()
	d := time.Since(began)
	close(stop)
	wg.Wait()
	if d > time.Second {
		t.Errorf("removing a peer took %v", d)
	}
}
