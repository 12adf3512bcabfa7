package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one thing that is wrong in a file.
type Error struct {
	File string
	Line int    // from 1; 0 if the error is about the file as a whole
	Col  int    // from 1; 0 if unknown
	Key  string // where in the file: subnets[0].zone; "" at the top
	Msg  string
}

// Error implements error: "FILE:LINE:COL: KEY: what is wrong".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Col > 0 {
			fmt.Fprintf(&b, ":%d", e.Col)
		}
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// Errors are all that is wrong in a file, in the order of its lines.
type Errors []*Error

// Error implements error: one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the single errors to errors.As.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

// maxErrors is how many errors of one file are reported.
const maxErrors = 100

// sorted orders the errors by line and cuts them at maxErrors.
func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	e = slices.CompactFunc(e, func(a, b *Error) bool { return *a == *b })
	if len(e) > maxErrors {
		more := len(e) - maxErrors
		e = append(e[:maxErrors:maxErrors], &Error{File: e[0].File, Msg: fmt.Sprintf("and %d more errors", more)})
	}
	return e
}

// nearest is the key closest to got, or "" if none is close: up to two
// letters or a third of them wrong, one in a short word, case apart.
func nearest(got string, keys []string) string {
	got = strings.ToLower(got)
	most := max(2, len(got)/3)
	if len(got) < 4 {
		most = 1
	}
	best, bestAt := "", most+1
	for _, k := range keys {
		if d := distance(got, strings.ToLower(k)); d < bestAt {
			best, bestAt = k, d
		}
	}
	if best == "" { // security_group for security_groups is near; so is cidr for allowed_cidrs
		for _, k := range keys {
			if len(got) >= 3 && (strings.Contains(k, got) || strings.Contains(got, k)) {
				return k
			}
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a (optimal string alignment). Texts longer
// than any key are far from all.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
