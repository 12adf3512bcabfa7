// Package e2e holds the tests of the whole of spillway on a real kernel:
// machines in network namespaces, driven by the command line, judged by packet
// captures and by programs that share no code with it (nmap, coturn, hping3,
// ping, a stock WireGuard client). They need root and the build tag netns:
//
//	go test -tags netns -count=1 ./internal/e2e/
//
// A program that is missing fails its test: a judge that stays at home proves
// nothing.
package e2e
