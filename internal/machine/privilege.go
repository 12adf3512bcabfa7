package machine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// needed is what a role cannot work without: interfaces, rules and guards need
// the first, entering namespaces the second.
const needed = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN

// errUnprivileged is for people: one sentence with the way out.
var errUnprivileged = errors.New("CAP_NET_ADMIN and CAP_SYS_ADMIN are needed for namespaces, interfaces and rules: " +
	"run it as root (`spillway demo` makes a user namespace by itself)")

// privileged returns errUnprivileged if this process may not do a role's work.
func privileged() error {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		hex, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return fmt.Errorf("capabilities: %w", err)
		}
		if caps&needed == needed {
			return nil
		}
	}
	return errUnprivileged
}
