// Package house holds the tests of the project's own rules: who may import
// whom, who may read the environment or the clock, and that every package says
// what it is.
package house
