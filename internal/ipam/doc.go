// Package ipam hands out addresses and remembers who has them.
//
// There are three kinds. Outside addresses are what an endpoint uses on its
// subnet: they come from the ranges that the subnet's owner gave. Blocks are
// inner prefixes lent to a host for one endpoint address: they come from the
// inner pools. A Book keeps both in a file, so that a restart or an edit of
// the configuration gives everyone the same again. Inner addresses are what
// one task uses inside its host's block: Inner hands them out on the host
// alone, without asking anybody.
//
// What is given back rests before somebody else gets it, so that a late
// packet never reaches a new owner (RFC 6888 REQ-8 asks the same of ports).
package ipam
