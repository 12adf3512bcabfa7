package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// maxDepth is how deep a file may nest; the deepest key needs 8.
const maxDepth = 16

// Load reads and checks a file. The error is an Errors, or what the system
// said when the file could not be read.
func Load(path string) (*File, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, Errors{{File: path, Msg: "not a regular file"}}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, b)
}

// Parse checks the text of a file; path is only for messages. The error is an
// Errors.
func Parse(path string, text []byte) (*File, error) {
	d := &decoder{path: path, defined: map[object]pos{}, groupAt: map[object]*groupPos{}}
	if root := d.read(text); root != nil {
		d.structure(root, 0)
		if len(d.errs) == 0 {
			f := d.file(root)
			d.check(f)
			if len(d.errs) == 0 {
				return f, nil
			}
		}
	}
	return nil, d.errs.sorted()
}

// read returns the one document of the text, or nil after an error.
func (d *decoder) read(text []byte) *yaml.Node {
	whole := func(format string, args ...any) *yaml.Node {
		d.errs = append(d.errs, &Error{File: d.path, Msg: fmt.Sprintf(format, args...)})
		return nil
	}
	switch {
	case len(text) > MaxSize:
		return whole("larger than %d bytes", MaxSize)
	case !utf8.Valid(text):
		return whole("not UTF-8 text")
	}
	loader, err := yaml.NewLoader(bytes.NewReader(text))
	if err != nil {
		return whole("%v", err)
	}
	var doc, second yaml.Node
	if err := loader.Load(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return whole("empty: it must at least name the machine")
		}
		return d.syntax(err)
	}
	switch err := loader.Load(&second); {
	case err == nil:
		d.errorf(pos{second.Line, second.Column}, "", "a second document starts here; one file holds one")
		return nil
	case !errors.Is(err, io.EOF):
		return d.syntax(err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return whole("not a YAML document")
	}
	return doc.Content[0]
}

// syntax reports what the YAML reader did not understand.
func (d *decoder) syntax(err error) *yaml.Node {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		d.errs = append(d.errs, &Error{File: d.path, Msg: "not YAML: " + clean(err.Error())})
		return nil
	}
	msg := "not YAML: " + clean(le.Message)
	if le.ContextMsg != "" {
		msg += " (" + clean(le.ContextMsg) + ")"
	}
	d.errs = append(d.errs, &Error{File: d.path, Line: max(0, le.Mark.Line), Col: max(0, le.Mark.Column), Msg: msg})
	return nil
}

// structure refuses the parts of YAML that a configuration has no use for and
// that can hide things: anchors, aliases, tags, merge keys, deep nesting.
func (d *decoder) structure(n *yaml.Node, depth int) {
	at := pos{n.Line, n.Column}
	switch {
	case depth > maxDepth:
		d.errorf(at, "", "nested too deep")
		return
	case n.Kind == yaml.AliasNode:
		d.errorf(at, "", "aliases (*name) are not allowed; write the value again")
		return
	case n.Anchor != "":
		d.errorf(at, "", "anchors (&name) are not allowed")
	case n.Style&yaml.TaggedStyle != 0:
		d.errorf(at, "", "tags (%s) are not allowed", quote(n.Tag))
	case n.Tag == "!!merge":
		d.errorf(at, "", "merge keys (<<) are not allowed; write the keys again")
	}
	for _, c := range n.Content {
		d.structure(c, depth+1)
	}
}

// clean makes foreign text safe for one line of a terminal.
func clean(s string) string {
	return strings.Trim(quote(s), `"`)
}

// quote puts text from a file into a message: escaped, and cut short.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return fmt.Sprintf("%q", s)
}
