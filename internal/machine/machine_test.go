package machine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fe919326/spillway/engine/api"
)

// TestZ37_ForeignFileAtTheSocketPathStays: nothing of somebody else's is
// removed to make room for our socket.
func TestZ37_ForeignFileAtTheSocketPathStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listenUnix(path); err == nil {
		l.Close()
		t.Fatal("a regular file was replaced")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("the file is gone: %q, %v", b, err)
	}
}

// TestZ36_SocketIsPrivate: only its owner may use it, a second spillway is
// refused, and what a dead one left is replaced.
func TestZ36_SocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "api.sock")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v: others may use the socket", st.Mode(), err)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm() != 0o700 {
		t.Fatalf("directory mode %v, %v", dir.Mode(), err)
	}
	if l2, err := listenUnix(path); err == nil {
		l2.Close()
		t.Fatal("two spillways listen on one path")
	}
	l.Close() // the file stays, as after a crash
	l, err = listenUnix(path)
	if err != nil {
		t.Fatalf("a dead socket is in the way: %v", err)
	}
	l.Close()
}

// TestZ39_RequestsAreReadStrictly: unknown keys, trailing values and bodies
// without end are refused with a reason.
func TestZ39_RequestsAreReadStrictly(t *testing.T) {
	h := http.MaxBytesHandler(handler(func(r *http.Request) (struct{}, error) {
		_, err := decode[api.AttachRequest](r)
		return struct{}{}, err
	}), 1<<16)
	for body, want := range map[string]string{
		`{"servce":"web"}`:                            "unknown field",
		`{"service":"web"} {"service":"x"}`:           "more than one JSON value",
		`{"service":`:                                 "unexpected EOF",
		`{"service":5}`:                               "cannot unmarshal",
		`{"id":"` + strings.Repeat("a", 1<<17) + `"}`: "too large",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/tasks", strings.NewReader(body)))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%.40s: %d %s, want 400 and %q", body, w.Code, w.Body, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/tasks", strings.NewReader(`{"service":"web"}`)))
	if w.Code != http.StatusOK {
		t.Errorf("a good request: %d %s", w.Code, w.Body)
	}
}

// TestNames: what is not a plain name never becomes a file or an interface.
func TestNames(t *testing.T) {
	for _, bad := range []string{"", "-a", "a-", "A", "a b", "../x", "a/b", "ä", "a\n", strings.Repeat("a", 64)} {
		var b badRequest
		if err := checkName("name", bad); !errors.As(err, &b) {
			t.Errorf("%q is taken: %v", bad, err)
		}
	}
	for _, good := range []string{"a", "web-1", strings.Repeat("a", 63)} {
		if err := checkName("name", good); err != nil {
			t.Errorf("%q is refused: %v", good, err)
		}
	}
}

// TestClientsFile: a change is on disk before it counts, and a damaged file is
// an error that says what to do.
func TestClientsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clients.json")
	c, err := openClients(path)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string) error {
		return c.change(func(all []storedClient) ([]storedClient, error) { return append(all, storedClient{Name: name}), nil })
	}
	if err := errors.Join(add("b"), add("a")); err != nil {
		t.Fatal(err)
	}
	again, err := openClients(path)
	if err != nil || len(again.list()) != 2 || again.list()[0].Name != "a" {
		t.Fatalf("%+v, %v", again.list(), err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if err := c.change(func([]storedClient) ([]storedClient, error) { return nil, errNotFound }); !errors.Is(err, errNotFound) {
		t.Fatal(err)
	}
	if len(c.list()) != 2 {
		t.Fatal("a failed change had an effect")
	}
	if err := os.WriteFile(path, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openClients(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("damaged file: %v", err)
	}
}

func placeSnapshot() *api.Snapshot {
	ep := func(id, subnet string) api.Endpoint {
		return api.Endpoint{ID: id, Account: "default", Subnet: subnet, Services: []string{"web"},
			Addresses: []api.EndpointAddress{
				{Owner: "e", Prefixes: []api.Delegation{{Machine: "h", Prefix: netip.MustParsePrefix("100.112.0.0/22")}}},
				{Owner: "e", Prefixes: []api.Delegation{{Machine: "h", Prefix: netip.MustParsePrefix("100.112.4.0/22")}, {Machine: "c", Service: "web", Prefix: netip.MustParsePrefix("100.112.8.2/32")}}},
			}}
	}
	return &api.Snapshot{
		Subnets:   []api.Subnet{{Account: "default", Name: "sa", Zone: "a"}, {Account: "default", Name: "sb", Zone: "b"}},
		Services:  []api.Service{{Account: "default", Name: "web", Egress: "VPC", Connector: "c"}, {Account: "default", Name: "open", Egress: "DEFAULT"}},
		Endpoints: []api.Endpoint{ep("eni-2", "sa"), ep("eni-1", "sb")},
	}
}

// TestS37_TasksUseTheEndpointOfTheirZone.
func TestS37_TasksUseTheEndpointOfTheirZone(t *testing.T) {
	s := placeSnapshot()
	for zone, want := range map[string]string{"a": "eni-2", "b": "eni-1", "c": "eni-1", "": "eni-1"} {
		ep, err := endpointOf(s, "default", "web", zone)
		if err != nil || ep.ID != want {
			t.Errorf("zone %q: %v, %v, want %s", zone, ep, err, want)
		}
	}
	if _, err := endpointOf(s, "default", "open", "a"); err == nil || !strings.Contains(err.Error(), "DEFAULT") {
		t.Errorf("a service without connector: %v", err)
	}
	if _, err := endpointOf(s, "default", "webb", "a"); err == nil || !strings.Contains(err.Error(), "webb") {
		t.Errorf("a service that does not exist: %v", err)
	}
}

// TestChooseTheEmptiestAddress of an endpoint, of those that lend the host a
// prefix; a client's address is nobody else's.
func TestChooseTheEmptiestAddress(t *testing.T) {
	ep := &placeSnapshot().Endpoints[0]
	load := []int{5, 3}
	c, err := choose(ep, "h", func(i int) int { return load[i] })
	if err != nil || c.index != 1 {
		t.Fatalf("index %d, %v, want 1", c.index, err)
	}
	if _, err := choose(ep, "c", func(int) int { return 0 }); err == nil {
		t.Fatal("a client's single address was taken for a host's prefix")
	}
}

// TestServeEndsWithItsContext and leaves no connection hanging.
func TestServeEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	held := make(chan struct{})
	go func() {
		done <- serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(held)
			<-r.Context().Done()
		}), slog.New(slog.DiscardHandler))
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	<-held
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("serve hangs on an open connection")
	}
}
