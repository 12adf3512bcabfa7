//go:build race

package tunnel

// raceEnabled: the race detector keeps several times the program's memory.
const raceEnabled = true
