package packet

import "encoding/binary"

// IsMartian reports whether a can never be the source or the destination of a
// packet that the engine forwards, whatever the rules say: addresses that RFC
// 6890 marks as not forwardable, multicast, and IPv6 addresses that carry an
// IPv4 address no packet may reach in disguise.
//
// IPv4: 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 192.0.0.0/24 (but for the
// forwardable 192.0.0.0/29 and the two global anycast addresses .9 and .10),
// 224.0.0.0/4, 240.0.0.0/4.
//
// IPv6: ::/64 (unspecified, loopback, IPv4-compatible, IPv4-translated),
// fe80::/10, fec0::/10, ff00::/8; 2002::/16 (6to4), 2001::/32 (Teredo) and
// 64:ff9b::/96 (NAT64) whose IPv4 address is martian or not global (RFC 3056
// section 2, RFC 4380 section 5.2.4, RFC 6052 section 3.1). An IPv4-mapped
// address on the wire is refused by Parse: here it stands for IPv4.
//
// The documentation prefixes (192.0.2.0/24, 2001:db8::/32 and so on) pass:
// closed networks use them.
func IsMartian(a Addr) bool { return martian(&a) }

func martian(a *Addr) bool {
	hi := binary.BigEndian.Uint64(a[0:8])
	if hi == 0 {
		if binary.BigEndian.Uint32(a[8:12]) == 0xffff {
			return martian4(binary.BigEndian.Uint32(a[12:16]))
		}
		return true
	}
	switch a[0] {
	case 0xff:
		return true
	case 0xfe:
		return a[1] >= 0x80
	case 0x20:
		switch {
		case a[1] == 0x02:
			return private4(uint32(hi >> 16))
		case hi>>32 == 0x20010000:
			// The server's address is in clear, the client's inverted.
			return private4(uint32(hi)) || private4(^binary.BigEndian.Uint32(a[12:16]))
		}
	case 0x00:
		if hi == 0x0064ff9b<<32 && binary.BigEndian.Uint32(a[8:12]) == 0 {
			return private4(binary.BigEndian.Uint32(a[12:16]))
		}
	}
	return false
}

// martian4 is IsMartian for an IPv4 address in host order.
func martian4(v uint32) bool {
	switch v >> 24 {
	case 0, 127:
		return true
	case 169:
		return v>>16 == 169<<8|254
	case 192:
		low := v & 0xff
		return v>>8 == 192<<16 && low > 7 && low != 9 && low != 10
	}
	return v >= 224<<24
}

// private4 reports whether v is martian or in a range that has no meaning
// outside its network (RFC 1918, RFC 6598).
func private4(v uint32) bool {
	return martian4(v) ||
		v>>24 == 10 ||
		v>>20 == 172<<4|1 ||
		v>>16 == 192<<8|168 ||
		v>>22 == 100<<2|1
}
