// Package netlab builds small kernel networks for spillway's demonstration,
// tests and benchmarks: a provider's network, hosts' tasks, an underlay, and a
// private subnet with servers, each box a network namespace, joined by veths.
// It needs root, or a user namespace (UserNamespaceCommand), and no command.
//
//	prov ──── host ──── (und) ──── egress 1..n ──── subnet (bridge) ──── srv 1..m
//	           │ pbr0                                │ eth1
//	       task 1..k (eth0)
//
// Addresses are fixed and listed in the constants of this package.
package netlab
