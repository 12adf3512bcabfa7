package machine

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/internal/ipam"
)

// clientMachine is the name of a stock client among the machines.
func clientMachine(name string) string { return "client-" + name }

// buildSnapshot makes what control would send out of a file and the clients
// of this machine.
func buildSnapshot(f *config.File, stored []storedClient) (*api.Snapshot, []string, error) {
	book, err := ipam.OpenBook(ipam.BookConfig{Path: filepath.Join(f.StateDir, "alloc.json")})
	if err != nil {
		return nil, nil, err
	}
	in := config.Inputs{Book: book, Keys: make(map[string][]string)}
	for _, role := range supervised(f) {
		key, err := machineKey(f.StateDir, role)
		if err != nil {
			return nil, nil, err
		}
		in.Keys[string(role)] = []string{key.Public().String()}
	}
	for _, c := range stored {
		in.Clients = append(in.Clients, config.Machine{
			Machine: api.Machine{Name: clientMachine(c.Name), Role: config.RoleClient, PublicKeys: []string{c.PublicKey}},
			Service: c.Service,
		})
	}
	return config.Build(f, in)
}

// choice is an endpoint address a task may leave by.
type choice struct {
	endpoint *api.Endpoint
	index    int
	address  *api.EndpointAddress
}

// endpointOf picks the endpoint of a service: the one in the host's zone if
// the connector has a subnet there, else the first by id.
func endpointOf(s *api.Snapshot, account, service, zone string) (*api.Endpoint, error) {
	i := slices.IndexFunc(s.Services, func(v api.Service) bool { return v.Account == account && v.Name == service })
	if i < 0 {
		return nil, fmt.Errorf("service %s/%s does not exist", account, service)
	}
	if s.Services[i].Egress != "VPC" {
		return nil, fmt.Errorf("service %s/%s has egress %s: its tasks use their primary interface and need no attachment",
			account, service, s.Services[i].Egress)
	}
	zones := make(map[string]string)
	for _, sub := range s.Subnets {
		if sub.Account == account {
			zones[sub.Name] = sub.Zone
		}
	}
	var best *api.Endpoint
	for i := range s.Endpoints {
		ep := &s.Endpoints[i]
		if ep.Account != account || !slices.Contains(ep.Services, service) || len(ep.Addresses) == 0 {
			continue
		}
		better := best == nil
		if best != nil {
			here, there := zones[ep.Subnet] == zone, zones[best.Subnet] == zone
			better = here && !there || here == there && ep.ID < best.ID
		}
		if better {
			best = ep
		}
	}
	if best == nil {
		return nil, fmt.Errorf("service %s/%s has no endpoint yet", account, service)
	}
	return best, nil
}

// prefixes returns what the endpoint address lends to a machine's tasks.
func (c choice) prefixes(machine string) []netip.Prefix {
	var out []netip.Prefix
	for _, d := range c.address.Prefixes {
		if d.Machine == machine && d.Service == "" {
			out = append(out, d.Prefix)
		}
	}
	return out
}

// choose picks the address of an endpoint for the next task of a machine: of
// those that lend it a prefix, the one with the fewest tasks.
func choose(ep *api.Endpoint, machine string, load func(index int) int) (choice, error) {
	var best choice
	fewest := -1
	for i := range ep.Addresses {
		c := choice{ep, i, &ep.Addresses[i]}
		if len(c.prefixes(machine)) == 0 {
			continue
		}
		if n := load(i); fewest < 0 || n < fewest {
			best, fewest = c, n
		}
	}
	if fewest < 0 {
		return choice{}, fmt.Errorf("endpoint %s lends no inner prefix to machine %s", ep.ID, machine)
	}
	return best, nil
}

// egressSubnets are the subnets whose endpoint addresses a machine owns.
func egressSubnets(s *api.Snapshot, machine string) []api.Subnet {
	var out []api.Subnet
	for _, sub := range s.Subnets {
		if slices.ContainsFunc(s.Endpoints, func(ep api.Endpoint) bool {
			return ep.Account == sub.Account && ep.Subnet == sub.Name &&
				slices.ContainsFunc(ep.Addresses, func(a api.EndpointAddress) bool { return a.Owner == machine })
		}) {
			out = append(out, sub)
		}
	}
	return out
}
