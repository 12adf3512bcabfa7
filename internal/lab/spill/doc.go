// Package spill runs spillway machines in the boxes of a netlab for the
// demonstration and for tests: `spillway up` as an operator would start it,
// driven by its command line and nothing else.
package spill
