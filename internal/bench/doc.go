// Package bench measures spillway beside what people would use instead: the
// kernel's own forwarding, wireguard-go with nftables, and nebula with
// nftables, all in one run on one machine.
//
// Three network namespaces are joined by veths: task, egress and server. Each
// way of getting from task to server is a Mode. Modes are built, measured and
// removed in turn, round after round, so that a machine that gets slower
// hurts all of them; the table shows medians with the smallest and the
// largest value. Only ratios within one run mean anything.
//
// Load is made by iperf3 (bulk TCP) and by this program itself, started again
// inside a namespace (see Load). The benchmark needs root, iperf3 and nft.
package bench
