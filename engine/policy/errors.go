package policy

import (
	"errors"
	"fmt"
)

// The ways in which groups and lists can be wrong. Compile, Validate and
// ValidateList wrap them with the name of the group or list and the index of
// the rule: test with errors.Is.
var (
	ErrProtocol      = errors.New("protocol must be -1, tcp, udp, icmp, icmpv6 or a number from 0 to 255")
	ErrPortOrder     = errors.New("from port is larger than to port")
	ErrPort          = errors.New("port must be from 0 to 65535")
	ErrICMP          = errors.New("ICMP type and code must be from -1 to 255")
	ErrRemote        = errors.New("exactly one of cidr, prefix_list and group must be set")
	ErrCIDR          = errors.New("not a valid IPv4 or IPv6 CIDR")
	ErrDescription   = errors.New("description is longer than 255 characters")
	ErrDuplicateRule = errors.New("the group has the same rule already")
	ErrDuplicateName = errors.New("the name is given twice")
	ErrUnknownList   = errors.New("no such prefix list in the account")
	ErrListSize      = errors.New("prefix list has more entries than max_entries")
	ErrTooManyRules  = errors.New("too many rules in the group")
	ErrTooManyGroups = errors.New("too many security groups")
	ErrTooManyTotal  = errors.New("rules times groups is too large")
	ErrTooComplex    = errors.New("the rules cut the address space into too many ranges")
	ErrLimits        = errors.New("limits must not be negative")
)

// RuleError says which rule is wrong, and how.
type RuleError struct {
	Group     string // name of the security group
	Direction string // "egress" or "ingress"
	Index     int    // position in the group's list, from 0
	Err       error  // one of the errors of this package, maybe with detail
}

// Error implements error.
func (e *RuleError) Error() string {
	return fmt.Sprintf("security group %q: %s rule %d: %v", e.Group, e.Direction, e.Index, e.Err)
}

// Unwrap returns what is wrong.
func (e *RuleError) Unwrap() error { return e.Err }

// maxReported is how many wrong rules one error names: enough to repair a
// file in one go, not so many that a hostile one fills a terminal.
const maxReported = 20

// problems collects errors up to maxReported.
type problems struct {
	errs []error
	more int
}

func (p *problems) add(err error) {
	if err == nil {
		return
	}
	if len(p.errs) < maxReported {
		p.errs = append(p.errs, err)
		return
	}
	p.more++
}

func (p *problems) err() error {
	if len(p.errs) == 0 {
		return nil
	}
	if p.more > 0 {
		return errors.Join(append(p.errs, fmt.Errorf("and %d more", p.more))...)
	}
	return errors.Join(p.errs...)
}
