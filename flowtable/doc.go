// Package flowtable remembers who talks to whom: one entry for every tracked
// connection, found by the tuple of a packet of either direction, with the
// connection's TCP state, timers and counters in it.
//
// The table lives in one piece of memory without pointers: a mapped file, an
// anonymous mapping, or Go memory. The garbage collector never scans it, and a
// process that was killed finds its flows again when it opens the same file.
//
// # Way of a packet
//
// Lookup finds the flow and the direction, Observe decides whether the packet
// fits the flow and counts it. Neither allocates. When there is no flow, or
// Observe says packet.NoFlow, the caller asks its policy and calls Insert.
//
// # Concurrency
//
// All methods of Table are safe for concurrent use, but for Close, which must
// come last. Lookup takes no lock. Insert holds one of 256 locks for each of
// the two tuples of the flow, and checks again under them. Observe holds one
// bit of the entry, for as long as it takes to decide about one packet; a
// process killed in that moment leaves the bit set, which tells Open that the
// TCP window of this one entry may be torn.
//
// Lock order: tuple stripes, task shard, free list. The bit of an entry is
// never held while another lock is taken, nor while a callback runs.
//
// # Reset, close and hold
//
// A finished TCP flow keeps its reply tuple for a while, so that a late packet
// never reaches another task. See Timeouts.
package flowtable
