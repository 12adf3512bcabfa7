package flowlog

import (
	"net/netip"
	"strconv"
	"unicode/utf8"
)

// maxText is the longest text that a field shows, in bytes of the original.
const maxText = 128

const hexDigits = "0123456789ABCDEF"

// appendWord appends s as one word of a space-separated line. Letters, digits
// and -_.:/ stay as they are; every other byte becomes %XX, so that no text
// can end a field, a line, a quotation or a terminal's patience. Empty texts
// become "-".
func appendWord(b []byte, s string) []byte {
	if s == "" {
		return append(b, '-')
	}
	if len(s) > maxText {
		s = s[:maxText]
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9',
			c == '-', c == '_', c == '.', c == ':', c == '/':
			b = append(b, c)
		default:
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return b
}

// appendQuoted appends s as a JSON string in which every byte is printable
// ASCII: control characters, everything beyond ASCII (line separators,
// direction overrides) and the characters that HTML cares about are escaped
// (RFC 8259 section 7). Bytes that are no UTF-8 become U+FFFD.
func appendQuoted(b []byte, s string) []byte {
	if len(s) > maxText {
		s = s[:maxText]
	}
	b = append(b, '"')
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r >= 0x7f || r == '<' || r == '>' || r == '&':
			if r > 0xffff {
				r -= 0x10000
				b = appendEscape(b, 0xd800|uint16(r>>10))
				b = appendEscape(b, 0xdc00|uint16(r&0x3ff))
				continue
			}
			b = appendEscape(b, uint16(r))
		default:
			b = append(b, byte(r))
		}
	}
	return append(b, '"')
}

func appendEscape(b []byte, u uint16) []byte {
	return append(b, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&15], hexDigits[u>>4&15], hexDigits[u&15])
}

// appendAddr appends an address without its zone: zones are names, and no
// packet carries one.
func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, '-')
	}
	return a.Unmap().WithZone("").AppendTo(b)
}

func appendPort(b []byte, p uint16) []byte { return strconv.AppendUint(b, uint64(p), 10) }

// encodedInfo is an EndpointInfo with its texts encoded once for all lines.
type encodedInfo struct {
	EndpointInfo
	account, id, subnet, vpc, zone, region string // as words
	json                                   string // as keys and values, comma in front
}

func encodeInfo(i EndpointInfo) *encodedInfo {
	word := func(s string) string { return string(appendWord(nil, s)) }
	e := &encodedInfo{
		EndpointInfo: i,
		account:      word(i.Account), id: word(i.ID), subnet: word(i.Subnet),
		vpc: word(i.VPC), zone: word(i.Zone), region: word(i.Region),
	}
	var b []byte
	for _, f := range [...]struct{ key, value string }{
		{"account", i.Account}, {"endpoint", i.ID}, {"subnet", i.Subnet},
		{"vpc", i.VPC}, {"zone", i.Zone}, {"region", i.Region},
	} {
		b = appendText(b, f.key, f.value)
	}
	e.json = string(b)
	return e
}

// noEndpoint is what lines of records without an endpoint show.
var noEndpoint = encodeInfo(EndpointInfo{})

// appendText appends a key with a text, or nothing if there is none.
func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return appendQuoted(b, value)
}
