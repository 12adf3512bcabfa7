package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// AttachRequest asks a host to give a network namespace its secondary
// interface.
type AttachRequest struct {
	// Netns is the path of the namespace, PID a process in it: exactly one is
	// set.
	Netns string `json:"netns,omitempty"`
	PID   int    `json:"pid,omitempty"`
	// Account of the service. Default "default".
	Account string `json:"account,omitempty"`
	Service string `json:"service"`
	// ID names the task. Default: one that the host chooses.
	ID string `json:"id,omitempty"`
	// PrimaryAllow is what the task may start connections to by its primary
	// interface: a CIDR, or CIDR:PORT.
	PrimaryAllow []string `json:"primary_allow,omitempty"`
	// PrimaryUDPPorts are UDP ports the task serves on its primary interface
	// from a socket bound to no address.
	PrimaryUDPPorts []uint16 `json:"primary_udp_ports,omitempty"`
}

// ClientRequest asks for a configuration for a stock WireGuard client.
type ClientRequest struct {
	Account string `json:"account,omitempty"`
	Service string `json:"service"`
	// Name names the client. Default: one that spillway chooses.
	Name string `json:"name,omitempty"`
}

// ClientConfig is all that a stock WireGuard client needs. The private key is
// told once and not kept.
type ClientConfig struct {
	Name            string         `json:"name"`
	PrivateKey      string         `json:"private_key"`
	Addresses       []netip.Prefix `json:"addresses"`
	MTU             int            `json:"mtu"`
	DNS             []netip.Addr   `json:"dns,omitempty"`
	ServerPublicKey string         `json:"server_public_key"`
	ServerAddress   netip.AddrPort `json:"server_address"`
	AllowedIPs      []netip.Prefix `json:"allowed_ips"`
	Keepalive       int            `json:"persistent_keepalive"` // seconds
	Outside         []netip.Addr   `json:"outside"`
}

// Status is what a role tells of itself.
type Status struct {
	Machine  string            `json:"machine"`
	Role     string            `json:"role"`
	PID      int               `json:"pid"`
	Stamp    Stamp             `json:"stamp"`
	Ready    bool              `json:"ready"`
	Drops    map[string]uint64 `json:"drops,omitempty"` // not attributed to a task or endpoint
	Restarts int               `json:"restarts"`
	Warnings []string          `json:"warnings,omitempty"`
}

// Error is a refusal by the API.
type Error struct {
	Status  int    `json:"-"` // HTTP status
	Message string `json:"error"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Client speaks to a spillway process. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// NewClient returns a client for addr: "unix:///run/spillway/api.sock" or
// "http://127.0.0.1:1234". It connects only when used.
func NewClient(addr string) (*Client, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("api address %q: %w", addr, err)
	}
	switch u.Scheme {
	case "unix":
		path := u.Path
		if u.Host != "" || path == "" {
			return nil, fmt.Errorf("api address %q: want unix:///absolute/path", addr)
		}
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}
		return &Client{base: "http://spillway", http: &http.Client{Transport: tr}}, nil
	case "http", "https":
		return &Client{base: strings.TrimSuffix(addr, "/"), http: &http.Client{}}, nil
	}
	return nil, fmt.Errorf("api address %q: want unix:///path, http:// or https://", addr)
}

// Attach attaches a task.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (Task, error) {
	var t Task
	return t, c.do(ctx, http.MethodPost, "/v1/tasks", r, &t)
}

// Detach ends a task's attachment.
func (c *Client) Detach(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/tasks/"+url.PathEscape(id), nil, nil)
}

// Tasks lists the host's tasks.
func (c *Client) Tasks(ctx context.Context) ([]Task, error) {
	var out []Task
	return out, c.do(ctx, http.MethodGet, "/v1/tasks", nil, &out)
}

// Endpoints lists the egress's endpoints.
func (c *Client) Endpoints(ctx context.Context) ([]EndpointStatus, error) {
	var out []EndpointStatus
	return out, c.do(ctx, http.MethodGet, "/v1/endpoints", nil, &out)
}

// Status tells how a process is.
func (c *Client) Status(ctx context.Context) ([]Status, error) {
	var out []Status
	return out, c.do(ctx, http.MethodGet, "/v1/status", nil, &out)
}

// NewWireGuardClient makes a peer for a stock WireGuard client.
func (c *Client) NewWireGuardClient(ctx context.Context, r ClientRequest) (ClientConfig, error) {
	var out ClientConfig
	return out, c.do(ctx, http.MethodPost, "/v1/clients", r, &out)
}

// RemoveWireGuardClient ends a stock client's access.
func (c *Client) RemoveWireGuardClient(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodDelete, "/v1/clients/"+url.PathEscape(name), nil, nil)
}

// Apply gives a role a snapshot.
func (c *Client) Apply(ctx context.Context, s *Snapshot) error {
	return c.do(ctx, http.MethodPut, "/v1/snapshot", s, nil)
}

// Reload makes the supervisor read its configuration again.
func (c *Client) Reload(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/reload", nil, nil)
}

// Flows calls f for every live flow, and with follow for every flow and
// refusal that comes, until f returns an error or ctx ends.
func (c *Client) Flows(ctx context.Context, follow string, f func(Flow) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/flows?follow="+url.QueryEscape(follow), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var fl Flow
		if err := json.Unmarshal(lines.Bytes(), &fl); err != nil {
			return fmt.Errorf("flows: %w", err)
		}
		if err := f(fl); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("flows: %w", err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("answer to %s %s: %w", method, path, err)
	}
	return nil
}

// send sends a request and turns a refusal into an *Error.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("the API is not open to you (%w): run this as the user spillway runs as, usually root", err)
		}
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("no spillway answers (%v): is `spillway up` running, and is --api right?", op.Err)
		}
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("%s %s: %s", method, path, resp.Status)
	}
	return nil, e
}
