package flowlog

import (
	"net/netip"

	"github.com/fe919326/spillway/internal/packet"
)

// isIPv4 tells the family of the packets: of any address that is known.
func (r *Record) isIPv4() bool {
	for _, a := range [...]netip.Addr{r.Remote.Addr(), r.Inner.Addr(), r.Outside.Addr()} {
		if a.IsValid() {
			return a.Unmap().Is4()
		}
	}
	return r.Proto != packet.ProtoICMPv6
}

// own is the interface's side of the packets: the shared address, and the
// outside port or, where there is none, the port the packet came with.
func (r *Record) own(e *encodedInfo) (netip.Addr, uint16) {
	addr, port := r.Outside.Addr(), r.Outside.Port()
	if !addr.IsValid() {
		addr = e.V6
		if r.isIPv4() {
			addr = e.V4
		}
	}
	if port == 0 {
		port = r.Inner.Port()
	}
	return addr, port
}

// task is the task's side of the packets, as the packets show it: its inner
// address, or the interface's own where there is no task.
func (r *Record) task(e *encodedInfo) netip.Addr {
	if a := r.Inner.Addr(); a.IsValid() {
		return a
	}
	own, _ := r.own(e)
	return own
}

func appendSrcAddr(b []byte, l *Line, e *encodedInfo) []byte {
	if l.Direction == Ingress {
		return appendAddr(b, l.Remote.Addr())
	}
	own, _ := l.own(e)
	return appendAddr(b, own)
}

func appendDstAddr(b []byte, l *Line, e *encodedInfo) []byte {
	if l.Direction != Ingress {
		return appendAddr(b, l.Remote.Addr())
	}
	own, _ := l.own(e)
	return appendAddr(b, own)
}

func appendSrcPort(b []byte, l *Line, e *encodedInfo) []byte {
	if isICMP(l.Proto) {
		return append(b, '0')
	}
	if l.Direction == Ingress {
		return appendPort(b, l.Remote.Port())
	}
	_, port := l.own(e)
	return appendPort(b, port)
}

func appendDstPort(b []byte, l *Line, e *encodedInfo) []byte {
	if isICMP(l.Proto) {
		return append(b, '0')
	}
	if l.Direction != Ingress {
		return appendPort(b, l.Remote.Port())
	}
	_, port := l.own(e)
	return appendPort(b, port)
}

func appendPktSrc(b []byte, l *Line, e *encodedInfo) []byte {
	if l.Direction == Ingress {
		return appendAddr(b, l.Remote.Addr())
	}
	return appendAddr(b, l.task(e))
}

func appendPktDst(b []byte, l *Line, e *encodedInfo) []byte {
	if l.Direction != Ingress {
		return appendAddr(b, l.Remote.Addr())
	}
	return appendAddr(b, l.task(e))
}

func appendType(b []byte, l *Line, _ *encodedInfo) []byte {
	if l.isIPv4() {
		return append(b, "IPv4"...)
	}
	return append(b, "IPv6"...)
}
