package machine

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
	"github.com/fe919326/spillway/internal/config"
	"github.com/fe919326/spillway/tunnel"
)

// storedClient is a stock WireGuard client as it is kept: its private key is
// not.
type storedClient struct {
	Name      string `json:"name"`
	Account   string `json:"account"`
	Service   string `json:"service"`
	PublicKey string `json:"public_key"`
}

// maxClients bounds the file.
const maxClients = 10_000

// clients is the stock WireGuard clients of this machine, in a file.
type clients struct {
	path string // immutable

	mu  sync.Mutex
	all []storedClient // guarded by mu; sorted by name
}

func openClients(path string) (*clients, error) {
	c := &clients{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("WireGuard clients: %w", err)
	}
	if err := json.Unmarshal(b, &c.all); err != nil {
		return nil, fmt.Errorf("WireGuard clients: %s: %w: repair the file, or remove it and make the clients anew", path, err)
	}
	return c, nil
}

func (c *clients) list() []storedClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.all)
}

// change replaces the list by what f makes of it, on disk first.
func (c *clients) change(f func([]storedClient) ([]storedClient, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, err := f(slices.Clone(c.all))
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b storedClient) int { return cmp.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(c.path, b); err != nil {
		return fmt.Errorf("WireGuard clients: %w", err)
	}
	c.all = all
	return nil
}

// writeFile replaces a file as a whole, or not at all.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checkName refuses what is not a plain name.
func checkName(what, name string) error {
	if !validName.MatchString(name) {
		return badRequest{fmt.Errorf("%s %q: want 1 to 63 of a-z, 0-9 and -, not at the ends", what, name)}
	}
	return nil
}

func randomName(prefix string) string {
	var b [5]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return prefix + hex.EncodeToString(b[:])
}

// addClient makes a stock client: key, addresses, peer.
func (s *Supervisor) addClient(r *http.Request) (api.ClientConfig, error) {
	req, err := decode[api.ClientRequest](r)
	if err != nil {
		return api.ClientConfig{}, err
	}
	req.Account = cmp.Or(req.Account, "default")
	req.Name = cmp.Or(req.Name, randomName("client-"))
	if err := checkName("client name", req.Name); err != nil {
		return api.ClientConfig{}, err
	}
	s.mu.Lock()
	file, snap := s.file, s.snapshot
	s.mu.Unlock()
	if !file.HasRole(config.RoleEgress) {
		return api.ClientConfig{}, badRequest{errors.New("this machine is no egress, and the egress would not know the client: run wg-config there")}
	}
	if _, err := endpointOf(snap, req.Account, req.Service, file.Zone); err != nil {
		return api.ClientConfig{}, badRequest{err}
	}
	key, err := tunnel.GeneratePrivateKey()
	if err != nil {
		return api.ClientConfig{}, err
	}
	add := func(all []storedClient) ([]storedClient, error) {
		if len(all) >= maxClients {
			return nil, badRequest{fmt.Errorf("there are %d clients already: remove some (wg-config --remove)", len(all))}
		}
		for _, c := range all {
			if c.Name == req.Name {
				return nil, badRequest{fmt.Errorf("client %q exists: its key cannot be told again; choose another name, or remove it first (wg-config --remove --name %s)", c.Name, c.Name)}
			}
		}
		return append(all, storedClient{Name: req.Name, Account: req.Account, Service: req.Service, PublicKey: key.Public().String()}), nil
	}
	if err := s.clients.change(add); err != nil {
		return api.ClientConfig{}, err
	}
	if err := s.rebuild(file); err != nil {
		return api.ClientConfig{}, errors.Join(err, s.dropClient(req.Name))
	}
	cfg, err := s.clientConfig(req, key)
	if err != nil {
		return api.ClientConfig{}, errors.Join(err, s.dropClient(req.Name))
	}
	for _, c := range s.children {
		if err := s.pushOnce(r.Context(), c); err != nil {
			return api.ClientConfig{}, errors.Join(fmt.Errorf("the %s did not take the new client: %w", c.role, err), s.dropClient(req.Name))
		}
	}
	return cfg, nil
}

// clientConfig reads from the snapshot what the client must know.
func (s *Supervisor) clientConfig(req api.ClientRequest, key tunnel.PrivateKey) (api.ClientConfig, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := clientMachine(req.Name)
	cfg := api.ClientConfig{
		Name: req.Name, PrivateKey: key.Reveal(), MTU: 1420, Keepalive: 0,
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	}
	for _, ep := range s.snapshot.Endpoints {
		for _, a := range ep.Addresses {
			for _, d := range a.Prefixes {
				if d.Machine != name {
					continue
				}
				cfg.Addresses = append(cfg.Addresses, d.Prefix)
				if len(cfg.Outside) > 0 {
					continue
				}
				for _, ip := range []netip.Addr{a.V4, a.V6} {
					if ip.IsValid() {
						cfg.Outside = append(cfg.Outside, ip)
					}
				}
				for _, m := range s.snapshot.Machines {
					if m.Name == a.Owner && m.Role == string(engine.RoleEgress) {
						cfg.ServerPublicKey, cfg.ServerAddress = m.PublicKeys[0], m.Address
					}
				}
				for _, sub := range s.snapshot.Subnets {
					if sub.Account == ep.Account && sub.Name == ep.Subnet {
						cfg.DNS = sub.Resolvers
					}
				}
			}
		}
	}
	if len(cfg.Addresses) == 0 || cfg.ServerPublicKey == "" {
		return cfg, fmt.Errorf("client %q got no address: the service's endpoint has no owner", req.Name)
	}
	return cfg, nil
}

func (s *Supervisor) removeClient(r *http.Request) (struct{}, error) {
	if err := s.dropClient(r.PathValue("name")); err != nil {
		return struct{}{}, err
	}
	for _, c := range s.children {
		if err := s.pushOnce(r.Context(), c); err != nil {
			return struct{}{}, fmt.Errorf("the %s still knows the client: %w", c.role, err)
		}
	}
	return struct{}{}, nil
}

func (s *Supervisor) dropClient(name string) error {
	err := s.clients.change(func(all []storedClient) ([]storedClient, error) {
		i := slices.IndexFunc(all, func(c storedClient) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("client %q: %w", name, errNotFound)
		}
		return slices.Delete(all, i, i+1), nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	file := s.file
	s.mu.Unlock()
	return s.rebuild(file)
}
