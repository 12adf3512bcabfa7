package config

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// pos is a place in the file, both from 1.
type pos struct{ line, col int }

// decoder turns nodes into values and collects what is wrong with them.
type decoder struct {
	path    string
	errs    Errors
	account string         // default account, known before anything else
	defined map[object]pos // everything that has a name
	refs    []reference    // every use of a name
	groupAt map[object]*groupPos
	later   []func(f *File) // checks that need the whole file
}

// object is a named thing.
type object struct{ kind, account, name string }

// reference is one use of a name.
type reference struct {
	object
	at  pos
	key string
}

// node is a YAML node with the key that leads to it.
type node struct {
	*yaml.Node
	key string
}

func (n node) pos() pos { return pos{n.Line, n.Column} }

func (d *decoder) errorf(at pos, key, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.path, Line: at.line, Col: at.col, Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (d *decoder) wrong(n node, format string, args ...any) {
	d.errorf(n.pos(), n.key, format, args...)
}

// field is one key of a mapping and what to do with its value.
type field struct {
	key      string
	required bool
	decode   func(node)
}

// object reads a mapping: each key at most once, none but the fields', every
// required one. It returns where the keys stand and false if n is no mapping.
func (d *decoder) object(n node, fields ...field) bool {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, "must be a mapping (key: value), not %s", kindOf(n))
		return false
	}
	keys := make([]string, len(fields))
	for i, f := range fields {
		keys[i] = f.key
	}
	seen := map[string]pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := pos{k.Line, k.Column}
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" {
			d.errorf(at, n.key, "a key must be a word")
			continue
		}
		if first, ok := seen[k.Value]; ok {
			d.errorf(at, n.key, "key %s is given twice; the first is in line %d", quote(k.Value), first.line)
			continue
		}
		seen[k.Value] = at
		f := fieldOf(fields, k.Value)
		if f == nil {
			d.unknown(at, n.key, k.Value, keys)
			continue
		}
		child := node{v, join(n.key, k.Value)}
		if v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
			d.errorf(at, child.key, "has no value")
			continue
		}
		f.decode(child)
	}
	for _, f := range fields {
		if _, ok := seen[f.key]; f.required && !ok {
			d.wrong(n, "key %q is missing", f.key)
		}
	}
	return true
}

func (d *decoder) unknown(at pos, parent, key string, keys []string) {
	if near := nearest(key, keys); near != "" {
		d.errorf(at, parent, "unknown key %s; did you mean %q?", quote(key), near)
		return
	}
	d.errorf(at, parent, "unknown key %s; the keys here are %s", quote(key), strings.Join(keys, ", "))
}

func fieldOf(fields []field, key string) *field {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

func join(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// list calls each for every element of a sequence.
func (d *decoder) list(n node, most int, each func(node)) {
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, "must be a list ([a, b] or lines with -), not %s", kindOf(n))
		return
	}
	if len(n.Content) > most {
		d.wrong(n, "has %d entries; the most is %d", len(n.Content), most)
		return
	}
	for i, c := range n.Content {
		each(node{c, fmt.Sprintf("%s[%d]", n.key, i)})
	}
}

func kindOf(n node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	case n.Tag == "!!int":
		return "the number " + clean(n.Value)
	case n.Tag == "!!str":
		return "the text " + quote(n.Value)
	}
	return "the value " + quote(n.Value)
}

// maxText is the longest text any key takes, in bytes.
const maxText = 4096

// text reads a non-empty string without control characters.
func (d *decoder) text(n node) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		d.wrong(n, "must be text, not %s", kindOf(n))
	case n.Tag != "!!str":
		d.wrong(n, "must be text, not %s; put it in quotes if it is meant as text", kindOf(n))
	case n.Value == "":
		d.wrong(n, "must not be empty")
	case len(n.Value) > maxText:
		d.wrong(n, "has %d bytes; the most is %d", len(n.Value), maxText)
	case !utf8.ValidString(n.Value) || strings.ContainsFunc(n.Value, unsafeRune):
		d.wrong(n, "contains a control character: %s", quote(n.Value))
	default:
		return n.Value, true
	}
	return "", false
}

// unsafeRune finds what could end a line, move a cursor or turn the writing
// direction in a log or on a terminal.
func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// name reads a name of ours.
func (d *decoder) name(n node) string {
	s, ok := d.text(n)
	if ok && !nameForm.MatchString(s) {
		d.wrong(n, "name %s must be 1 to 63 of a-z, 0-9 and -, and neither start nor end with -", quote(s))
		return ""
	}
	return s
}

// define notes a name; a second one of the same kind is an error.
func (d *decoder) define(o object, n node) {
	if o.name == "" {
		return
	}
	if first, ok := d.defined[o]; ok {
		d.wrong(n, "%s %q is defined twice; the first is in line %d", o.kind, o.name, first.line)
		return
	}
	d.defined[o] = n.pos()
}

// refer notes the use of a name, to be looked up when all are known.
func (d *decoder) refer(kind, account, name string, n node) {
	if name != "" {
		d.refs = append(d.refs, reference{object{kind, account, name}, n.pos(), n.key})
	}
}

// choice reads one of a few words.
func (d *decoder) choice(n node, words ...string) string {
	s, ok := d.text(n)
	if !ok {
		return ""
	}
	for _, w := range words {
		if s == w {
			return s
		}
	}
	if near := nearest(s, words); near != "" {
		d.wrong(n, "%s is not one of %s; did you mean %q?", quote(s), strings.Join(words, ", "), near)
	} else {
		d.wrong(n, "%s is not one of %s", quote(s), strings.Join(words, ", "))
	}
	return ""
}

// number reads a whole decimal number in [low, high].
func (d *decoder) number(n node, low, high int) int {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" {
		d.wrong(n, "must be a number, not %s", kindOf(n))
		return low
	}
	v, err := strconv.Atoi(n.Value)
	if digits := strings.TrimPrefix(n.Value, "-"); err != nil || len(digits) > 1 && digits[0] == '0' || n.Value[0] == '+' {
		d.wrong(n, "%s is not a plain decimal number", quote(n.Value))
		return low
	}
	if v < low || v > high {
		d.wrong(n, "%d is out of range: %d to %d", v, low, high)
		return low
	}
	return v
}

// duration reads "300s", "2h4m" or a number of seconds.
func (d *decoder) duration(n node, low, high time.Duration) time.Duration {
	var v time.Duration
	if n.Kind == yaml.ScalarNode && n.Tag == "!!int" {
		v = time.Duration(d.number(n, 0, int(1<<31))) * time.Second
	} else {
		s, ok := d.text(n)
		if !ok {
			return low
		}
		var err error
		if v, err = time.ParseDuration(s); err != nil {
			d.wrong(n, "%s is not a duration; write seconds, or a number with s, m or h: 300s, 2h4m", quote(s))
			return low
		}
	}
	if v < low || v > high {
		d.wrong(n, "%v is out of range: %v to %v", v, low, high)
		return low
	}
	return v
}

// file path: absolute, plain, not the root.
func (d *decoder) filePath(n node) string {
	s, ok := d.text(n)
	switch {
	case !ok:
		return ""
	case !path.IsAbs(s):
		d.wrong(n, "path %s must be absolute", quote(s))
	case path.Clean(s) != strings.TrimSuffix(s, "/") || s == "/":
		d.wrong(n, "path %s must be plain: no . or .., no //, not the root", quote(s))
	default:
		return path.Clean(s)
	}
	return ""
}

// ifname reads the name of a network interface (dev_valid_name in the kernel).
func (d *decoder) ifname(n node) string {
	s, ok := d.text(n)
	if ok && (len(s) > 15 || s == "." || s == ".." || strings.ContainsAny(s, "/: \t") || strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })) {
		d.wrong(n, "%s is not the name of a network interface", quote(s))
		return ""
	}
	return s
}

func (d *decoder) addr(n node) netip.Addr {
	s, ok := d.text(n)
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		d.wrong(n, "%s is not an IP address", quote(s))
		return netip.Addr{}
	}
	return a
}

// prefix reads a CIDR. With mask, host bits are cleared as AWS does; else
// they are an error.
func (d *decoder) prefix(n node, mask bool) netip.Prefix {
	s, ok := d.text(n)
	if !ok {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil && !strings.Contains(s, "/"):
		d.wrong(n, "%s is not a CIDR: the length is missing, as in 10.0.1.0/24", quote(s))
	case err != nil || p.Addr().Is4In6():
		d.wrong(n, "%s is not a CIDR", quote(s))
	case !mask && p != p.Masked():
		d.wrong(n, "%s has bits set behind its length; did you mean %s?", quote(s), p.Masked())
	default:
		return p.Masked()
	}
	return netip.Prefix{}
}

// addrPort reads IP:PORT.
func (d *decoder) addrPort(n node) netip.AddrPort {
	s, ok := d.text(n)
	if !ok {
		return netip.AddrPort{}
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Zone() != "" || a.Addr().Is4In6() || a.Port() == 0 {
		d.wrong(n, "%s is not an address with a port, as in 0.0.0.0:51820 or [::]:51820", quote(s))
		return netip.AddrPort{}
	}
	return a
}
