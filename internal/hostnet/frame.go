package hostnet

import (
	"bytes"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// question is what an ARP or neighbour discovery frame says about an address.
type question uint8

const (
	noQuestion question = iota // not a frame for us: malformed or of another kind
	whoHas                     // asks for the address: ARP request or probe, neighbour solicitation
	isHere                     // says that its sender has the address: ARP of any kind, neighbour advertisement
)

// frame is one parsed ARP or neighbour discovery frame.
type frame struct {
	kind   question
	target netip.Addr // the address asked for or claimed
	sender netip.Addr // who asks; zero for an ARP probe or duplicate address detection
	mac    [6]byte    // the sender's Ethernet address
}

// parseFrame parses an Ethernet frame. Anything that is not well formed
// (RFC 826, RFC 4861 sections 7.1.1 and 7.1.2) is noQuestion. An ARP request
// both asks for one address and claims another: claimed is the sender's then,
// and zero otherwise.
func parseFrame(b []byte) (f frame, claimed netip.Addr) {
	if len(b) < header.EthernetMinimumSize {
		return frame{}, netip.Addr{}
	}
	eth := header.Ethernet(b)
	copy(f.mac[:], eth.SourceAddress())
	switch eth.Type() {
	case header.ARPProtocolNumber:
		return f.parseARP(b[header.EthernetMinimumSize:])
	case header.IPv6ProtocolNumber:
		return f.parseND(b[header.EthernetMinimumSize:]), netip.Addr{}
	}
	return frame{}, netip.Addr{}
}

func (f frame) parseARP(b []byte) (frame, netip.Addr) {
	arp := header.ARP(b)
	if !arp.IsValid() || !unicastMAC(arp.HardwareAddressSender()) {
		return frame{}, netip.Addr{}
	}
	// RFC 826 believes the packet's own sender field, not the frame's.
	copy(f.mac[:], arp.HardwareAddressSender())
	sender, _ := netip.AddrFromSlice(arp.ProtocolAddressSender())
	target, _ := netip.AddrFromSlice(arp.ProtocolAddressTarget())
	var claimed netip.Addr
	if !sender.IsUnspecified() {
		f.sender, claimed = sender, sender
	}
	switch arp.Op() {
	case header.ARPRequest:
		f.kind, f.target = whoHas, target
	case header.ARPReply:
		f.kind, f.target, claimed = isHere, sender, sender
	default:
		return frame{}, netip.Addr{}
	}
	return f, claimed
}

func (f frame) parseND(b []byte) frame {
	ip := header.IPv6(b)
	if len(b) < header.IPv6MinimumSize || b[0]>>4 != 6 || ip.NextHeader() != uint8(header.ICMPv6ProtocolNumber) ||
		ip.HopLimit() != header.NDPHopLimit {
		return frame{}
	}
	n := int(ip.PayloadLength())
	if n < header.ICMPv6HeaderSize+header.NDPNSMinimumSize || len(b) < header.IPv6MinimumSize+n {
		return frame{}
	}
	icmp := header.ICMPv6(b[header.IPv6MinimumSize : header.IPv6MinimumSize+n])
	src, dst := ip.SourceAddress(), ip.DestinationAddress()
	if icmp.Code() != 0 || header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: src, Dst: dst}) != icmp.Checksum() {
		return frame{}
	}
	body := icmp.MessageBody()
	switch icmp.Type() {
	case header.ICMPv6NeighborSolicit:
		return f.parseSolicit(header.NDPNeighborSolicit(body), src, dst)
	case header.ICMPv6NeighborAdvert:
		return f.parseAdvert(header.NDPNeighborAdvert(body), dst)
	}
	return frame{}
}

func (f frame) parseSolicit(ns header.NDPNeighborSolicit, src, dst tcpip.Address) frame {
	mac, ok := linkOption(ns.Options(), true)
	if !ok {
		return frame{}
	}
	f.kind, f.target = whoHas, netip.AddrFrom16(ns.TargetAddress().As16())
	sender := netip.AddrFrom16(src.As16())
	if sender.IsUnspecified() {
		// Duplicate address detection: to the solicited-node group, and
		// without a source address option (RFC 4861 section 7.1.1).
		if mac != nil || dst != header.SolicitedNodeAddr(ns.TargetAddress()) {
			return frame{}
		}
	} else {
		f.sender = sender
		if mac != nil {
			copy(f.mac[:], mac)
		}
	}
	if f.target.IsMulticast() || f.target.Is4In6() || f.sender.IsMulticast() || !unicastMAC(f.mac[:]) {
		return frame{}
	}
	return f
}

func (f frame) parseAdvert(na header.NDPNeighborAdvert, dst tcpip.Address) frame {
	mac, ok := linkOption(na.Options(), false)
	if !ok || (header.IsV6MulticastAddress(dst) && na.SolicitedFlag()) {
		return frame{}
	}
	if mac != nil {
		copy(f.mac[:], mac)
	}
	f.kind, f.target = isHere, netip.AddrFrom16(na.TargetAddress().As16())
	if f.target.IsMulticast() || f.target.Is4In6() || !unicastMAC(f.mac[:]) {
		return frame{}
	}
	return f
}

// linkOption finds the source (or target) link-layer address option. ok is
// false when the options are malformed. mac is nil without the option.
func linkOption(o header.NDPOptions, source bool) (mac []byte, ok bool) {
	it, err := o.Iter(true)
	if err != nil {
		return nil, false
	}
	for {
		opt, done, err := it.Next()
		if err != nil {
			return nil, false
		}
		if done {
			return mac, true
		}
		var a tcpip.LinkAddress
		switch v := opt.(type) {
		case header.NDPSourceLinkLayerAddressOption:
			if source {
				a = v.EthernetAddress()
			}
		case header.NDPTargetLinkLayerAddressOption:
			if !source {
				a = v.EthernetAddress()
			}
		}
		if len(a) == 6 {
			mac = []byte(a)
		}
	}
}

func unicastMAC(b []byte) bool {
	return len(b) == 6 && b[0]&1 == 0 && !bytes.Equal(b, make([]byte, 6))
}

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ethernet(dst, src [6]byte, proto tcpip.NetworkProtocolNumber, n int) []byte {
	// 60 bytes is the shortest frame without its check sequence.
	b := make([]byte, max(60, header.EthernetMinimumSize+n))
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(src[:]), DstAddr: tcpip.LinkAddress(dst[:]), Type: proto,
	})
	return b
}

// arpFrame builds an ARP packet (RFC 826).
func arpFrame(op header.ARPOp, dst, srcMAC, targetMAC [6]byte, sender, target netip.Addr) []byte {
	b := ethernet(dst, srcMAC, header.ARPProtocolNumber, header.ARPSize)
	arp := header.ARP(b[header.EthernetMinimumSize:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(op)
	copy(arp.HardwareAddressSender(), srcMAC[:])
	copy(arp.HardwareAddressTarget(), targetMAC[:])
	s, t := sender.As4(), target.As4()
	copy(arp.ProtocolAddressSender(), s[:])
	copy(arp.ProtocolAddressTarget(), t[:])
	return b
}

// allNodes is the group of every IPv6 node on the link and its Ethernet form.
var allNodes = netip.MustParseAddr("ff02::1")

func multicastMAC(a netip.Addr) [6]byte {
	b := a.As16()
	return [6]byte{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the group that solicitations for a go to (RFC 4291 section
// 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	g := header.SolicitedNodeAddr(tcpip.AddrFrom16(b))
	return netip.AddrFrom16(g.As16())
}

// advertFrame builds a neighbour advertisement (RFC 4861 section 4.4) from a
// for itself: a host's, overriding.
func advertFrame(dstMAC, mac [6]byte, a, dst netip.Addr, solicited bool) []byte {
	opts := header.NDPOptionsSerializer{header.NDPTargetLinkLayerAddressOption(mac[:])}
	n := header.ICMPv6HeaderSize + header.NDPNAMinimumSize + opts.Length()
	b := ethernet(dstMAC, mac, header.IPv6ProtocolNumber, header.IPv6MinimumSize+n)
	icmp := ipv6ND(b, n, a, dst)
	icmp.SetType(header.ICMPv6NeighborAdvert)
	na := header.NDPNeighborAdvert(icmp.MessageBody())
	na.SetTargetAddress(tcpip.AddrFrom16(a.As16()))
	na.SetSolicitedFlag(solicited)
	na.SetOverrideFlag(true)
	na.Options().Serialize(opts)
	return finishND(b, icmp, a, dst)
}

// probeND builds the solicitation of duplicate address detection (RFC 4862
// section 5.4.2): source unspecified, no option.
func probeND(mac [6]byte, a netip.Addr) []byte {
	n := header.ICMPv6HeaderSize + header.NDPNSMinimumSize
	dst := solicitedNode(a)
	b := ethernet(multicastMAC(dst), mac, header.IPv6ProtocolNumber, header.IPv6MinimumSize+n)
	icmp := ipv6ND(b, n, netip.IPv6Unspecified(), dst)
	icmp.SetType(header.ICMPv6NeighborSolicit)
	header.NDPNeighborSolicit(icmp.MessageBody()).SetTargetAddress(tcpip.AddrFrom16(a.As16()))
	return finishND(b, icmp, netip.IPv6Unspecified(), dst)
}

// probeARP builds an ARP probe (RFC 5227 section 2.1.1).
func probeARP(mac [6]byte, a netip.Addr) []byte {
	return arpFrame(header.ARPRequest, broadcastMAC, mac, [6]byte{}, netip.IPv4Unspecified(), a)
}

func ipv6ND(b []byte, n int, src, dst netip.Addr) header.ICMPv6 {
	header.IPv6(b[header.EthernetMinimumSize:]).Encode(&header.IPv6Fields{
		PayloadLength: uint16(n), TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: header.NDPHopLimit,
		SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16()),
	})
	at := header.EthernetMinimumSize + header.IPv6MinimumSize
	return header.ICMPv6(b[at : at+n])
}

func finishND(b []byte, icmp header.ICMPv6, src, dst netip.Addr) []byte {
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: icmp, Src: tcpip.AddrFrom16(src.As16()), Dst: tcpip.AddrFrom16(dst.As16()),
		PayloadCsum: checksum.Checksum(nil, 0),
	}))
	return b
}

// announceFrame is the frame that tells everybody on the link where a is: an
// ARP announcement (RFC 5227 section 3) or an unsolicited neighbour
// advertisement (RFC 4861 section 7.2.6).
func announceFrame(mac [6]byte, a netip.Addr) []byte {
	if a.Is4() {
		return arpFrame(header.ARPRequest, broadcastMAC, mac, [6]byte{}, a, a)
	}
	return advertFrame(multicastMAC(allNodes), mac, a, allNodes, false)
}

// answerFrame answers a whoHas frame for an address of ours.
func answerFrame(mac [6]byte, f *frame) []byte {
	if f.target.Is4() {
		sender := f.sender
		if !sender.IsValid() {
			sender = netip.IPv4Unspecified()
		}
		return arpFrame(header.ARPReply, f.mac, mac, f.mac, f.target, sender)
	}
	if !f.sender.IsValid() {
		return advertFrame(multicastMAC(allNodes), mac, f.target, allNodes, false)
	}
	return advertFrame(f.mac, mac, f.target, f.sender, true)
}

func macOf(h net.HardwareAddr) (m [6]byte) {
	copy(m[:], h)
	return m
}
