// Package policy decides which flows an endpoint may start: it compiles the
// egress rules of the endpoint's security groups into a Set, and a Set answers
// for the first packet of a flow.
//
// Rules only allow. What no rule of any group allows is denied, so that a
// group without rules, an endpoint without groups and a nil Set all deny
// everything. The order of rules and of groups has no effect on what is
// allowed. Ingress rules never have an effect: an endpoint serves outbound
// flows only, and answers belong to flows that exist.
//
// A verdict depends on the destination address, the protocol and the
// destination port (or the ICMP type and code), and on nothing else. It costs
// two searches whose length hardly grows with the number of rules: one over
// the address ranges that the rules cut the address space into, one over the
// port ranges of the range that was found. It allocates nothing.
//
// A Set is immutable. Whoever holds one in an atomic pointer replaces all
// rules at once: there is no instant at which neither or both sets decide.
package policy
