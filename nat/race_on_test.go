//go:build race

package nat

// raceEnabled makes long loops short: see scaled.
const raceEnabled = true
