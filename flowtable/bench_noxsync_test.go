//go:build !xsync

package flowtable

// newXsync is nil: the comparison with xsync needs the build tag xsync, so that
// the module does not depend on it otherwise.
var newXsync func() rival
