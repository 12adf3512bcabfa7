package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/mdp/qrterminal/v3"
	"github.com/urfave/cli/v2"

	"github.com/fe919326/spillway/engine/api"
)

func wgConfigCommand() *cli.Command {
	return &cli.Command{
		Name:  "wg-config",
		Usage: "make the configuration of a stock WireGuard client",
		Description: "Prints a wg-quick configuration: any WireGuard client that runs it is a task of the\n" +
			"service. The private key is made here, printed once and kept nowhere. With --remove the\n" +
			"client named by --name loses its access.\n\n" +
			"Example:\n   spillway wg-config --service web --name laptop > spill0.conf",
		Flags: []cli.Flag{
			apiFlag(), jsonFlag(),
			&cli.StringFlag{Name: "service", Usage: "`NAME` of the service the client belongs to"},
			&cli.StringFlag{Name: "account", Usage: "`ACCOUNT` of the service", Value: "default"},
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the client (default: chosen by spillway)"},
			&cli.StringFlag{Name: "endpoint", Usage: "`HOST:PORT` the client reaches the egress at (default: its listen address)"},
			&cli.BoolFlag{Name: "dns", Usage: "include the subnet's resolvers (needs resolvconf on the client)"},
			&cli.BoolFlag{Name: "qr", Usage: "print a QR code for a phone"},
			&cli.BoolFlag{Name: "remove", Usage: "take the access of --name away"},
		},
		Action: func(c *cli.Context) error {
			cl, err := connect(c)
			if err != nil {
				return err
			}
			if c.Bool("remove") {
				if c.String("name") == "" {
					return usagef("wg-config --remove needs --name")
				}
				return cl.RemoveWireGuardClient(c.Context, c.String("name"))
			}
			if c.String("service") == "" {
				return usagef("wg-config needs --service NAME")
			}
			if e := c.String("endpoint"); e != "" {
				if err := checkEndpoint(e); err != nil {
					return err
				}
			}
			cfg, err := cl.NewWireGuardClient(c.Context, api.ClientRequest{
				Account: c.String("account"), Service: c.String("service"), Name: c.String("name"),
			})
			if err != nil {
				return err
			}
			if a := cfg.ServerAddress.Addr(); c.String("endpoint") == "" && (!a.IsValid() || a.IsUnspecified() || a.IsLoopback()) {
				fmt.Fprintf(c.App.ErrWriter, "warning: the client is told to call %v, which works on this machine only: "+
					"for another one, replace it (--endpoint HOST:PORT does)\n", cfg.ServerAddress)
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, cfg)
			}
			text := wgQuick(cfg, c.String("endpoint"), c.Bool("dns"))
			if c.Bool("qr") {
				qrterminal.GenerateHalfBlock(text, qrterminal.L, os.Stdout)
				return nil
			}
			_, err = io.WriteString(c.App.Writer, text)
			return err
		},
	}
}

// checkEndpoint refuses what would not be one line of a configuration, before
// a client is made for it.
func checkEndpoint(e string) error {
	host, port, err := net.SplitHostPort(e)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || host == "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '#' || r == 0x7f }) {
		return usagef("--endpoint %q: want HOST:PORT, and [ADDRESS]:PORT for IPv6", e)
	}
	return nil
}

// wgQuick is cfg in the format of wg-quick(8).
func wgQuick(cfg api.ClientConfig, endpoint string, dns bool) string {
	if endpoint == "" {
		endpoint = cfg.ServerAddress.String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: leaves as %s\n[Interface]\n", cfg.Name, addrs(cfg.Outside))
	fmt.Fprintf(&b, "PrivateKey = %s\nAddress = %s\nMTU = %d\n", cfg.PrivateKey, strings.ReplaceAll(addrs(cfg.Addresses), ",", ", "), cfg.MTU)
	if dns && len(cfg.DNS) > 0 {
		fmt.Fprintf(&b, "DNS = %s\n", addrs(cfg.DNS))
	}
	fmt.Fprintf(&b, "\n[Peer]\nPublicKey = %s\nEndpoint = %s\nAllowedIPs = %s\n", cfg.ServerPublicKey, endpoint,
		strings.ReplaceAll(addrs(cfg.AllowedIPs), ",", ", "))
	if cfg.Keepalive > 0 {
		fmt.Fprintf(&b, "PersistentKeepalive = %d\n", cfg.Keepalive)
	}
	return b.String()
}
