package policy_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/policy"
)

// A group allows a database, a change of the rules is one atomic store, and
// the verdict names the rule.
func Example() {
	db := api.SecurityGroup{Account: "default", Name: "sg-db", Egress: []api.Rule{
		{Protocol: "tcp", FromPort: 5432, ToPort: 5432, CIDR: netip.MustParsePrefix("10.0.1.0/24")},
	}}
	var current atomic.Pointer[policy.Set] // nil: denies everything
	dst := netip.MustParseAddr("10.0.1.20")

	_, reason := current.Load().Allows(dst, 6, 5432)
	fmt.Println("before:", reason)

	set, err := policy.Compile(policy.Input{Groups: []api.SecurityGroup{db}, Version: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	current.Store(set)

	rule, reason := current.Load().Allows(dst, 6, 5432)
	fmt.Println("after:", reason, set.Rule(rule).Group, set.Rule(rule).Index)
	_, reason = current.Load().Allows(dst, 6, 22)
	fmt.Println("other port:", reason)
	// Output:
	// before: denied-by-policy
	// after: ok sg-db 0
	// other port: denied-by-policy
}

func ExampleValidate() {
	fmt.Println(policy.Validate(api.SecurityGroup{Name: "sg-db", Egress: []api.Rule{
		{Protocol: "tcp", FromPort: 90, ToPort: 80, CIDR: netip.MustParsePrefix("10.0.1.0/24")},
	}}))
	// Output: security group "sg-db": egress rule 0: from port is larger than to port: 90-80
}
