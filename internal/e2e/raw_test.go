//go:build netns && linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/fe919326/spillway/internal/lab/netlab"
)

// serialize makes the bytes of an IP packet, checksums and lengths right.
func serialize(ls ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...)
	if err != nil {
		panic(err) // the layers are the test's own
	}
	return buf.Bytes()
}

// ip is the network layer of a packet of ours.
func ip(src, dst netip.Addr, proto layers.IPProtocol) (gopacket.SerializableLayer, gopacket.NetworkLayer) {
	if src.Is4() {
		h := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		return h, h
	}
	h := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	return h, h
}

func udpPacket(src, dst netip.AddrPort, payload string) []byte {
	n, nl := ip(src.Addr(), dst.Addr(), layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := u.SetNetworkLayerForChecksum(nl); err != nil {
		panic(err)
	}
	return serialize(n, u, gopacket.Payload(payload))
}

func tcpPacket(src, dst netip.AddrPort, flags func(*layers.TCP), payload string) []byte {
	n, nl := ip(src.Addr(), dst.Addr(), layers.IPProtocolTCP)
	h := &layers.TCP{SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: 4711, Window: 1024}
	flags(h)
	if err := h.SetNetworkLayerForChecksum(nl); err != nil {
		panic(err)
	}
	return serialize(n, h, gopacket.Payload(payload))
}

func echoPacket(src, dst netip.Addr, payload string) []byte {
	if src.Is4() {
		n, _ := ip(src, dst, layers.IPProtocolICMPv4)
		h := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 7, Seq: 1}
		return serialize(n, h, gopacket.Payload(payload))
	}
	n, nl := ip(src, dst, layers.IPProtocolICMPv6)
	h := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}
	if err := h.SetNetworkLayerForChecksum(nl); err != nil {
		panic(err)
	}
	return serialize(n, h, &layers.ICMPv6Echo{Identifier: 7, SeqNumber: 1}, gopacket.Payload(payload))
}

// rawSender puts packets onto an interface below routing, rules and guards, as
// a task with NET_RAW can.
type rawSender struct{ fd, index int }

// raw opens a packet socket (AF_PACKET, SOCK_DGRAM: from the IP header on) on
// an interface of a box.
func raw(box *netlab.Box, link string) (*rawSender, error) {
	s := &rawSender{fd: -1}
	err := box.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		s.index = ifi.Index
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return s, err
}

// to sends an IP packet with a given link-layer destination; nil for a link
// without addresses.
func (s *rawSender) to(mac net.HardwareAddr, packet []byte) error {
	proto := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	sa := &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: s.index, Halen: uint8(len(mac))}
	copy(sa.Addr[:], mac)
	return unix.Sendto(s.fd, packet, 0, sa)
}

func (s *rawSender) close() { unix.Close(s.fd) }

// ipRaw sends an IP packet by a raw IP socket bound to an interface: the
// kernel routes it and applies its rules, but takes the header as it is.
func ipRaw(box *netlab.Box, link string, packet []byte) error {
	return box.Do(func() error {
		family := unix.AF_INET
		if packet[0]>>4 == 6 {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.BindToDevice(fd, link); err != nil {
			return err
		}
		if family == unix.AF_INET {
			return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])})
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 1); err != nil {
			return err
		}
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])})
	})
}

// bothWays sends a packet by a packet socket and by a raw IP socket. A kernel
// that refuses the second for what the packet is has done half of the work.
// Into a raw socket's empty IPv4 source it would put the right one (raw(7)).
func bothWays(box *netlab.Box, s *rawSender, link string, packet []byte) error {
	if err := s.to(nil, packet); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if packet[0]>>4 == 4 && bytes.Equal(packet[12:16], make([]byte, 4)) {
		return nil
	}
	err := ipRaw(box, link, packet)
	for _, e := range []error{unix.EINVAL, unix.EPERM, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
