package api_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fe919326/spillway/engine/api"
)

// TestClientTellsRefusals: what the other side says reaches the caller in its
// words, whatever else it sends.
func TestClientTellsRefusals(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"task \"web1\" exists"}`: `task "web1" exists`,
		`not json`:                         "409",
		``:                                 "409",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusConflict)
			_, _ = w.Write([]byte(body)) // the client reads all of it
		}))
		c, err := api.NewClient(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Attach(context.Background(), api.AttachRequest{Service: "web"})
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status != http.StatusConflict || !strings.Contains(err.Error(), want) {
			t.Errorf("body %q: %v, want %q", body, err, want)
		}
		s.Close()
	}
}

// TestClientRefusesAddresses it cannot use, and says what it can.
func TestClientRefusesAddresses(t *testing.T) {
	for _, bad := range []string{"", "tcp://1.2.3.4", "unix://relative", "/run/x.sock", "unix:///\x00"} {
		if _, err := api.NewClient(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	c, err := api.NewClient("unix:///does/not/exist.sock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tasks(context.Background()); err == nil || !strings.Contains(err.Error(), "spillway up") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestFlowsStopsWhenTold: the error of the callback ends the stream and comes
// back.
func TestFlowsStopsWhenTold(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			_, _ = w.Write([]byte(`{"endpoint":"eni-1","protocol":"udp","inner":"100.112.0.2:1","remote":"10.0.1.1:53"}` + "\n"))
		}
		_, _ = w.Write([]byte("garbage\n"))
	}))
	defer s.Close()
	c, err := api.NewClient(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	stop, n := errors.New("enough"), 0
	err = c.Flows(context.Background(), "", func(api.Flow) error {
		if n++; n == 2 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || n != 2 {
		t.Errorf("%d flows, %v", n, err)
	}
	if err := c.Flows(context.Background(), "", func(api.Flow) error { return nil }); err == nil {
		t.Error("garbage in the stream goes unnoticed")
	}
}
