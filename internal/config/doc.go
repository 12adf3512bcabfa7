// Package config reads spillway's configuration files and makes of one what
// the engine is told: a snapshot.
//
// Reading is strict. A key nobody knows, a value of the wrong kind, a name
// that nothing defines: each is an error with file, line and column, and all
// errors of a file are reported together. A file with an error has no effect
// at all: Load returns either a File or errors, never both.
//
// docs/config.md describes every key.
package config
