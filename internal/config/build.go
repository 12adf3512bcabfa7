package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/ipam"
)

// FileCluster is the identity in the stamp of every snapshot that a file made.
const FileCluster = "file"

// Inputs are what Build needs and the file does not say.
type Inputs struct {
	// Book remembers who has which addresses. Required.
	Book *ipam.Book
	// Keys are this machine's WireGuard public keys by role (RoleEgress,
	// RoleHost), base64, one per lane.
	Keys map[string][]string
	// Clients are stock WireGuard clients that were registered since the
	// machine started: role RoleClient and a Service of the default account.
	Clients []Machine
	// Driver is for subnets that name none. "" means "tun".
	Driver string
}

// Build makes the snapshot that the file stands for: connectors and services
// become endpoints with addresses, and hosts and clients get inner prefixes
// on each. It is deterministic: the same file, inputs and book give the same
// snapshot, and what the book gave once stays as long as the file allows.
// warnings are what is allowed but unwise. After an error the book is as it
// was.
func Build(f *File, in Inputs) (snap *api.Snapshot, warnings []string, err error) {
	if in.Book == nil {
		return nil, nil, errors.New("config: Build needs a Book")
	}
	if err := f.checkOwnKeys(in.Keys); err != nil {
		return nil, nil, err
	}
	if err := f.checkClients(in.Clients); err != nil {
		return nil, nil, err
	}
	err = in.Book.Update(func(t *ipam.Tx) error {
		b := &builder{f: f, in: in, tx: t, snap: &api.Snapshot{InnerPools: slices.Clone(f.InnerPools)}}
		if err := b.build(); err != nil {
			return err
		}
		snap, warnings = b.snap, b.warnings
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return snap, warnings, nil
}

// checkOwnKeys compares the keys that the file gives for this machine with
// those it has.
func (f *File) checkOwnKeys(keys map[string][]string) error {
	for _, m := range f.Machines {
		if m.Name != f.Machine || len(m.PublicKeys) == 0 || len(keys[m.Role]) == 0 {
			continue
		}
		if !slices.Equal(m.PublicKeys, keys[m.Role]) {
			return fmt.Errorf("%s: machines: the public key given for %q is not this machine's: its own is %s",
				f.Path, m.Name, strings.Join(keys[m.Role], ", "))
		}
	}
	return nil
}

// checkClients: names and keys that no other machine has.
func (f *File) checkClients(clients []Machine) error {
	names, keys := map[string]bool{f.Machine: true}, map[string]bool{}
	for _, m := range f.Machines {
		names[m.Name] = true
		for _, k := range m.PublicKeys {
			keys[k] = true
		}
	}
	for _, m := range clients {
		switch {
		case m.Role != RoleClient || m.Service == "" || !nameForm.MatchString(m.Name):
			return fmt.Errorf("client %q: needs a name, role %q and a service", m.Name, RoleClient)
		case names[m.Name]:
			return fmt.Errorf("client %q: another machine has this name", m.Name)
		}
		names[m.Name] = true
		for _, k := range m.PublicKeys {
			if keys[k] {
				return fmt.Errorf("client %q: another machine has the same public key", m.Name)
			}
			keys[k] = true
		}
	}
	return nil
}

type builder struct {
	f        *File
	in       Inputs
	tx       *ipam.Tx
	snap     *api.Snapshot
	warnings []string
}

func (b *builder) build() error {
	b.objects()
	if err := b.endpoints(); err != nil {
		return err
	}
	b.machines()
	if err := b.delegations(); err != nil {
		return err
	}
	if err := b.clients(); err != nil {
		return err
	}
	b.tx.ReleaseOthers()
	b.snap.Stamp = api.Stamp{Cluster: FileCluster, Revision: b.tx.Revision("snapshot", digest(b.snap)), Epoch: 1}
	return nil
}

func digest(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic("config: snapshot does not encode: " + err.Error()) // plain data only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// objects copies what the file names, by account and name.
func (b *builder) objects() {
	f, s := b.f, b.snap
	for _, x := range f.Subnets {
		x.Driver = cmp.Or(x.Driver, b.in.Driver, "tun")
		s.Subnets = append(s.Subnets, x.Subnet)
	}
	s.SecurityGroups = slices.Clone(f.SecurityGroups)
	s.PrefixLists = slices.Clone(f.PrefixLists)
	for i := range s.PrefixLists {
		l := &s.PrefixLists[i]
		l.Version = int(b.tx.Revision("prefix-list/"+l.Account+"/"+l.Name, digest(l.Entries)))
	}
	for _, c := range f.Connectors {
		x := api.Connector{Account: c.Account, Name: c.Name, Active: true,
			Subnets: slices.Clone(c.Subnets), SecurityGroups: slices.Sorted(slices.Values(c.SecurityGroups))}
		x.Revision = int(b.tx.Revision("connector/"+c.Account+"/"+c.Name, digest([][]string{x.Subnets, x.SecurityGroups})))
		s.Connectors = append(s.Connectors, x)
		b.warnConnector(&c)
	}
	for _, x := range f.Services {
		s.Services = append(s.Services, api.Service{Account: x.Account, Name: x.Name, Egress: x.Egress, Connector: x.Connector})
	}
	slices.SortFunc(s.Subnets, func(x, y api.Subnet) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(s.SecurityGroups, func(x, y api.SecurityGroup) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(s.PrefixLists, func(x, y api.PrefixList) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(s.Connectors, func(x, y api.Connector) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(s.Services, func(x, y api.Service) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Name, y.Name))
	})
}

// warnConnector: a connector should span three zones, and its groups should
// let something leave.
func (b *builder) warnConnector(c *Connector) {
	zones := map[string]bool{}
	for _, s := range b.f.Subnets {
		if s.Account == c.Account && slices.Contains(c.Subnets, s.Name) {
			zones[s.Zone] = true
		}
	}
	if len(zones) < 3 {
		b.warnings = append(b.warnings, fmt.Sprintf("connector %q uses subnets in %s; three or more let its services survive the loss of one",
			c.Name, plural(len(zones), "zone")))
	}
	for _, g := range b.f.SecurityGroups {
		if g.Account == c.Account && slices.Contains(c.SecurityGroups, g.Name) && len(g.Egress) > 0 {
			return
		}
	}
	b.warnings = append(b.warnings, fmt.Sprintf("connector %q: none of its security groups has an egress rule, so that nothing can leave", c.Name))
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// EndpointID is the id of the endpoint of (subnet, set of groups) in an
// account: it follows from these names alone. The order of groups has no
// effect.
func EndpointID(account, subnet string, groups []string) string {
	sorted := slices.Sorted(slices.Values(groups))
	sum := sha256.Sum256([]byte("endpoint\x00" + account + "\x00" + subnet + "\x00" + strings.Join(sorted, "\x00")))
	return "eni-" + hex.EncodeToString(sum[:])[:17]
}

// endpoints makes one endpoint for every (subnet, set of groups) that a
// service uses, and gives it addresses.
func (b *builder) endpoints() error {
	byID := map[string]*api.Endpoint{}
	for _, s := range b.snap.Services { // sorted, so that users are too
		if s.Egress != "VPC" {
			continue
		}
		i := slices.IndexFunc(b.snap.Connectors, func(c api.Connector) bool { return c.Account == s.Account && c.Name == s.Connector })
		if i < 0 {
			return fmt.Errorf("service %q: no connector %q", s.Name, s.Connector) // Load refuses this
		}
		c := &b.snap.Connectors[i]
		for _, subnet := range c.Subnets {
			id := EndpointID(c.Account, subnet, c.SecurityGroups)
			e := byID[id]
			if e == nil {
				e = &api.Endpoint{ID: id, Account: c.Account, Subnet: subnet, SecurityGroups: slices.Clone(c.SecurityGroups),
					UDPMapping: b.f.NAT.UDPMapping, Deny: b.f.NAT.Deny}
				byID[id] = e
			}
			e.Services = append(e.Services, s.Name)
		}
	}
	var order []*api.Endpoint
	for _, e := range byID {
		order = append(order, e)
	}
	// The order in which fresh endpoints choose addresses.
	slices.SortFunc(order, func(x, y *api.Endpoint) int {
		return cmp.Or(cmp.Compare(x.Account, y.Account), cmp.Compare(x.Subnet, y.Subnet),
			slices.Compare(x.SecurityGroups, y.SecurityGroups))
	})
	for _, e := range order {
		if err := b.addresses(e); err != nil {
			return err
		}
		b.snap.Endpoints = append(b.snap.Endpoints, *e)
	}
	return nil
}

// subnet finds a subnet of the file.
func (b *builder) subnet(account, name string) *Subnet {
	i := slices.IndexFunc(b.f.Subnets, func(s Subnet) bool { return s.Account == account && s.Name == name })
	if i < 0 {
		return nil
	}
	return &b.f.Subnets[i]
}

func (b *builder) addresses(e *api.Endpoint) error {
	s := b.subnet(e.Account, e.Subnet)
	if s == nil {
		return fmt.Errorf("endpoint %s: no subnet %q", e.ID, e.Subnet) // Load refuses this
	}
	addrs, secret, err := b.tx.Endpoint(ipam.EndpointSpec{ID: e.ID, Account: e.Account, Subnet: e.Subnet,
		Ranges: s.Ranges, Count: s.PerEndpoint})
	if err != nil {
		return err
	}
	e.Secret = secret
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, api.EndpointAddress{V4: a.V4, V6: a.V6, Owner: s.Egress, Standby: s.Standby,
			Epoch: 1, Prefixes: []api.Delegation{}})
	}
	return nil
}
