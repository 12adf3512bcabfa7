package lab

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fe919326/spillway/internal/packet"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// What a trace keeps: the newest events, and of large packets only the front.
const (
	traceRoom = 1 << 15
	traceSnap = 256
)

// Trace is what passed where, in order. It is safe for concurrent use.
type Trace struct {
	start time.Time
	now   func() time.Time

	mu     sync.Mutex
	events []event // guarded by mu: a ring once it is full
	next   int     // guarded by mu
	resets int     // guarded by mu
}

// event is a packet at a hop, or with no packet a word about one.
type event struct {
	at   time.Duration
	hop  string
	data []byte // the first traceSnap bytes
	size int
	gso  packet.GSO
	note string
}

func newTrace(now func() time.Time) *Trace { return &Trace{start: now(), now: now} }

// add notes that p was at hop.
func (t *Trace) add(hop string, p packet.Packet, note string) {
	e := event{hop: hop, data: slices.Clone(p.Data[:min(len(p.Data), traceSnap)]), size: len(p.Data), gso: p.GSO, note: note}
	t.mu.Lock()
	defer t.mu.Unlock()
	if isReset(e.data) {
		t.resets++
	}
	e.at = t.now().Sub(t.start)
	if len(t.events) < traceRoom {
		t.events = append(t.events, e)
		return
	}
	t.events[t.next] = e
	t.next = (t.next + 1) % traceRoom
}

// Note writes a word between the packets.
func (t *Trace) Note(hop, format string, args ...any) {
	t.add(hop, packet.Packet{}, fmt.Sprintf(format, args...))
}

// Resets counts the TCP resets that were seen anywhere.
func (t *Trace) Resets() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.resets
}

func isReset(data []byte) bool {
	if len(data) == 0 {
		return false
	}
	tcp, ok := decode(data).Layer(layers.LayerTypeTCP).(*layers.TCP)
	return ok && tcp.RST
}

func (t *Trace) all() []event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(slices.Clone(t.events[t.next:]), t.events[:t.next]...)
}

// Print writes the newest lines of the trace: time, hop, packet, what became
// of it.
func (t *Trace) Print(w io.Writer, lines int) {
	events := t.all()
	if len(events) > lines {
		fmt.Fprintf(w, "… %d earlier\n", len(events)-lines)
		events = events[len(events)-lines:]
	}
	for _, e := range events {
		fmt.Fprintf(w, "%10.3fms  %-22s %s", float64(e.at.Microseconds())/1000, e.hop, e.summary())
		if e.note != "" {
			fmt.Fprintf(w, "  [%s]", e.note)
		}
		fmt.Fprintln(w)
	}
}

// WriteCapture writes the trace as pcapng, one interface per hop. Each packet
// has the four bytes of a BSD loopback header in front: libpcap reads files of
// several interfaces with those, but not without a link header.
func (t *Trace) WriteCapture(w io.Writer) error {
	events := t.all()
	hops := make(map[string]int)
	for _, e := range events {
		hops[e.hop] = 0
	}
	if len(hops) == 0 {
		return nil
	}
	var ng *pcapgo.NgWriter
	for i, hop := range slices.Sorted(maps.Keys(hops)) {
		intf := pcapgo.NgInterface{Name: hop, LinkType: layers.LinkTypeNull, TimestampResolution: 9}
		var err error
		if ng == nil {
			ng, err = pcapgo.NewNgWriterInterface(w, intf, pcapgo.DefaultNgWriterOptions)
		} else {
			_, err = ng.AddInterface(intf)
		}
		if err != nil {
			return err
		}
		hops[hop] = i
	}
	for _, e := range events {
		if e.size == 0 {
			continue
		}
		family := byte(2) // AF_INET
		if e.data[0]>>4 == 6 {
			family = 30 // AF_INET6, one of its three numbers
		}
		data := append([]byte{family, 0, 0, 0}, e.data...)
		ci := gopacket.CaptureInfo{
			Timestamp: t.start.Add(e.at), CaptureLength: len(data), Length: e.size + 4, InterfaceIndex: hops[e.hop],
		}
		var opts pcapgo.NgPacketOptions
		if e.note != "" {
			opts.Comments = []string{e.note}
		}
		if err := ng.WritePacketWithOptions(ci, data, opts); err != nil {
			return err
		}
	}
	return ng.Flush()
}

func decode(data []byte) gopacket.Packet {
	first := gopacket.Decoder(layers.LayerTypeIPv4)
	if data[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(data, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
}

// summary is the packet in one line.
func (e *event) summary() string {
	if e.size == 0 {
		return ""
	}
	p := decode(e.data)
	var b strings.Builder
	if n := p.NetworkLayer(); n != nil {
		src, dst := n.NetworkFlow().Endpoints()
		if tr := p.TransportLayer(); tr != nil {
			sport, dport := tr.TransportFlow().Endpoints()
			fmt.Fprintf(&b, "%v:%v > %v:%v ", src, sport, dst, dport)
		} else {
			fmt.Fprintf(&b, "%v > %v ", src, dst)
		}
	}
	if tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
		var flags strings.Builder
		for _, f := range []struct {
			set  bool
			name byte
		}{{tcp.SYN, 'S'}, {tcp.FIN, 'F'}, {tcp.RST, 'R'}, {tcp.PSH, 'P'}, {tcp.ACK, '.'}} {
			if f.set {
				flags.WriteByte(f.name)
			}
		}
		fmt.Fprintf(&b, "tcp %s seq %d ack %d win %d", flags.String(), tcp.Seq, tcp.Ack, tcp.Window)
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		fmt.Fprintf(&b, "icmp %v", icmp.TypeCode)
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		fmt.Fprintf(&b, "icmp6 %v", icmp.TypeCode)
	} else if l := p.TransportLayer(); l != nil {
		b.WriteString(strings.ToLower(l.LayerType().String()))
	}
	fmt.Fprintf(&b, " %d bytes", e.size)
	if e.gso.Type != packet.GSONone {
		fmt.Fprintf(&b, " of %d", e.gso.Size)
	}
	return b.String()
}
