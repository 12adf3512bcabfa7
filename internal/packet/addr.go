package packet

import (
	"encoding/binary"
	"net/netip"
)

// AddrFrom returns a as an Addr: IPv4 addresses in their mapped form, any zone
// dropped. The zero netip.Addr becomes the zero Addr (the IPv6 unspecified
// address).
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// ToNetip returns a as a netip.Addr: IPv4 addresses unmapped.
func ToNetip(a Addr) netip.Addr { return netip.AddrFrom16(a).Unmap() }

// Is4 reports whether a is an IPv4 address in its mapped form.
func Is4(a *Addr) bool {
	return binary.BigEndian.Uint64(a[0:8]) == 0 && binary.BigEndian.Uint32(a[8:12]) == 0xffff
}

// map4 stores the four bytes of an IPv4 address in a as a mapped address.
func map4(a *Addr, b []byte) {
	binary.BigEndian.PutUint64(a[0:8], 0)
	binary.BigEndian.PutUint32(a[8:12], 0xffff)
	copy(a[12:16], b[:4])
}
