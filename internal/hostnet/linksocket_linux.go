package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// linkSocket is a pair of packet sockets on one Ethernet interface: one sees
// ARP, the other IPv6 neighbour solicitations and advertisements. Each asks
// the kernel for its protocol only, so that IPv4 traffic never meets them.
type linkSocket struct {
	arp, nd *os.File
	index   int
	mac     [6]byte
}

func openLinkSocket(ns *NS, link string) (s *linkSocket, err error) {
	s = &linkSocket{}
	defer func() {
		if err != nil {
			s.close()
			s = nil
		}
	}()
	err = ns.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		if len(ifi.HardwareAddr) != 6 {
			return fmt.Errorf("interface %s has no Ethernet address", link)
		}
		s.index, s.mac = ifi.Index, macOf(ifi.HardwareAddr)
		if s.arp, err = packetSocket(unix.ETH_P_ARP, ifi.Index, nil); err != nil {
			return err
		}
		if s.nd, err = packetSocket(unix.ETH_P_IPV6, ifi.Index, ndFilter()); err != nil {
			return err
		}
		// Answers to duplicate address detection go to all nodes, which an
		// interface without IPv6 of its own would not receive.
		return s.receive(multicastMAC(allNodes), true)
	})
	return s, err
}

// packetSocket opens a raw packet socket. The filter stands before the socket
// is bound: no other frame can slip in.
func packetSocket(proto uint16, index int, filter []bpf.Instruction) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "packet socket")
	if filter != nil {
		if err := attachFilter(fd, filter); err != nil {
			f.Close()
			return nil, err
		}
	}
	// Our own frames are not wanted back. Kernels before 4.20 do not know
	// the option; then they are told apart by their sender.
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil || errors.Is(err, unix.ENOPROTOOPT) {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: index})
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return f, nil
}

// ndFilter passes ICMPv6 neighbour solicitations (135) and advertisements
// (136) without extension headers, as RFC 4861 has them and RFC 6980 demands.
func ndFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 14 + 6, Size: 1}, // next header
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 14 + 40, Size: 1}, // type
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 136, SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	}
}

func attachFilter(fd int, prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	f := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		f[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	return nil
}

// join makes the interface receive the solicited-node group of a, or not.
func (s *linkSocket) join(a netip.Addr, in bool) error {
	if err := s.receive(multicastMAC(solicitedNode(a)), in); err != nil {
		return fmt.Errorf("multicast group of %s: %w", a, err)
	}
	return nil
}

// receive makes the interface's filter take an Ethernet multicast address, or
// not. The kernel undoes it when the socket closes.
func (s *linkSocket) receive(mac [6]byte, in bool) error {
	m := unix.PacketMreq{Ifindex: int32(s.index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
	copy(m.Address[:], mac[:])
	opt := unix.PACKET_ADD_MEMBERSHIP
	if !in {
		opt = unix.PACKET_DROP_MEMBERSHIP
	}
	c, err := s.nd.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, opt, &m)
	})
	return errors.Join(cerr, err)
}

// send sends a frame. A full queue drops it, as the link itself may.
func (s *linkSocket) send(b []byte) error {
	c, err := s.arp.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) {
		_, err = unix.Write(int(fd), b)
	})
	return errors.Join(cerr, err)
}

func (s *linkSocket) close() {
	for _, f := range []*os.File{s.arp, s.nd} {
		if f != nil {
			f.Close()
		}
	}
}
