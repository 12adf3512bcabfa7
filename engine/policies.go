package engine

import (
	"fmt"
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/engine/policy"
)

// compilePolicies compiles one policy per endpoint.
func compilePolicies(s *api.Snapshot) (map[string]*policy.Set, error) {
	groups := make(map[string]api.SecurityGroup)
	for _, g := range s.SecurityGroups {
		groups[g.Account+"/"+g.Name] = g
	}
	sets := make(map[string]*policy.Set)
	for _, ep := range s.Endpoints {
		in := policy.Input{Version: uint32(s.Stamp.Revision)}
		for _, name := range ep.SecurityGroups {
			g, ok := groups[ep.Account+"/"+name]
			if !ok {
				return nil, fmt.Errorf("endpoint %s names security group %q, which does not exist", ep.ID, name)
			}
			in.Groups = append(in.Groups, g)
		}
		for _, l := range s.PrefixLists {
			if l.Account == ep.Account {
				in.Lists = append(in.Lists, l)
			}
		}
		account := ep.Account
		in.Members = func(group string) []netip.Prefix { return membersOf(s, account, group) }
		set, err := policy.Compile(in)
		if err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", ep.ID, err)
		}
		sets[ep.ID] = set
	}
	return sets, nil
}

// membersOf is the private addresses of the endpoints in a group.
func membersOf(s *api.Snapshot, account, group string) []netip.Prefix {
	var out []netip.Prefix
	for _, ep := range s.Endpoints {
		if ep.Account != account {
			continue
		}
		for _, name := range ep.SecurityGroups {
			if name != group {
				continue
			}
			for _, a := range ep.Addresses {
				for _, ip := range []netip.Addr{a.V4, a.V6} {
					if ip.IsValid() {
						out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
					}
				}
			}
		}
	}
	return out
}
