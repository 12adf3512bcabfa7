package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/fe919326/spillway/engine/api"
)

// A program asks the host for its tasks. A real one names the socket of
// `spillway up`: unix:///run/spillway/api.sock.
func ExampleClient_Tasks() {
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode([]api.Task{{ // the client tells if it got half
			ID: "web1", Service: "web", Interface: "spill0", Inner: []netip.Addr{netip.MustParseAddr("100.112.0.2")},
			Outside: []netip.Addr{netip.MustParseAddr("10.0.1.50")},
		}})
	}))
	defer host.Close()
	c, err := api.NewClient(host.URL)
	if err != nil {
		panic(err)
	}
	tasks, err := c.Tasks(context.Background())
	if err != nil {
		panic(err)
	}
	for _, t := range tasks {
		fmt.Println(t.ID, "leaves by", t.Interface, "as", t.Outside[0])
	}
	// Output: web1 leaves by spill0 as 10.0.1.50
}
