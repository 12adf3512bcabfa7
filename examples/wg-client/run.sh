#!/bin/sh
# A stock WireGuard client as a task: spillway makes its configuration with
# wg-config, wg-quick(8) runs it. Checks itself, removes what it made, and
# fails if anything is not as it says. Needs root, ip(8), curl, nc, wg-quick(8),
# and WireGuard: in the kernel, or wireguard-go, which is built from this
# module where it is missing. SPILLWAY names the binary (default: on the PATH).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
spillway=$(command -v "${SPILLWAY:-spillway}") || { echo "no spillway: make build, then SPILLWAY=bin/spillway $0" >&2; exit 1; }
command -v wg-quick >/dev/null || { echo "no wg-quick: install wireguard-tools" >&2; exit 1; }
dir=$(mktemp -d) tag=$$
sub=sub$tag db=db$tag laptop=lap$tag port=$((20000 + tag % 30000))
export SPILLWAY_API="unix://$dir/run/api.sock"

clean() {
	code=$?
	trap - EXIT INT TERM
	[ ! -e "$dir/$laptop.conf" ] || ip netns exec "$laptop" wg-quick down "$dir/$laptop.conf" >/dev/null 2>&1 || :
	if [ -n "${up:-}" ]; then kill "$up" 2>/dev/null || :; wait "$up" || code=1; fi
	[ ! -e "$dir/spillway.yaml" ] || "$spillway" cleanup --config "$dir/spillway.yaml" >/dev/null || code=1
	for ns in "$db" "$laptop"; do
		ip netns pids "$ns" 2>/dev/null | xargs -r kill 2>/dev/null || :
		ip netns del "$ns" 2>/dev/null || :
	done
	for link in "$sub" "$laptop"; do ip link del "$link" 2>/dev/null || :; done
	if [ "$code" = 0 ]; then echo "done: nothing is left"; else echo FAILED >&2; cat "$dir"/*.log >&2 || :; fi
	rm -rf "$dir"
	exit "$code"
}
trap clean EXIT
trap 'exit 1' INT TERM
check() { # check WHAT COMMAND…
	what=$1; shift
	if "$@"; then echo "ok: $what"; else echo "not so: $what" >&2; exit 1; fi
}
not() { if "$@"; then return 1; fi; }

# The private subnet 10.78.1.0/24: this machine is .10 on it, a server is .20.
ip link set lo up
ip netns add "$db"
ip link add "$sub" type veth peer name eth0 netns "$db"
ip addr add 10.78.1.10/24 dev "$sub"
ip link set "$sub" up
ip -n "$db" addr add 10.78.1.20/24 dev eth0
ip -n "$db" link set eth0 up
ip -n "$db" link set lo up

# A laptop that reaches this machine at 172.31.78.1 and knows no spillway.
ip netns add "$laptop"
ip link add "$laptop" type veth peer name eth0 netns "$laptop"
ip addr add 172.31.78.1/24 dev "$laptop"
ip link set "$laptop" up
ip -n "$laptop" addr add 172.31.78.2/24 dev eth0
ip -n "$laptop" link set eth0 up
ip -n "$laptop" link set lo up

cat >"$dir/spillway.yaml" <<YAML
machine: example
roles: [egress]
state_dir: $dir/state
run_dir: $dir/run
listen: { wireguard: "0.0.0.0:$port" }
limits: { max_flows: 4096 }
subnets:
  - { name: subnet-a, cidrs: [10.78.1.0/24], interface: $sub, isolate: netns, addresses: [10.78.1.50-10.78.1.59] }
security_groups:
  - { name: sg-web, egress: [ { protocol: tcp, ports: 8080, cidrs: [10.78.1.0/24] } ] }
connectors:
  - { name: my-connector, subnets: [subnet-a], security_groups: [sg-web] }
services:
  - { name: web, egress: VPC, connector: my-connector }
YAML
"$spillway" up --config "$dir/spillway.yaml" 2>"$dir/up.log" &
up=$!
check "spillway is ready" "$spillway" status --wait >"$dir/status.log" 2>&1

(umask 077 && "$spillway" wg-config --service web --name laptop --endpoint "172.31.78.1:$port" >"$dir/$laptop.conf")
if ! ip -n "$laptop" link add wgtest type wireguard 2>/dev/null; then
	WG_QUICK_USERSPACE_IMPLEMENTATION=$(command -v wireguard-go) || { WG_QUICK_USERSPACE_IMPLEMENTATION=$dir/wireguard-go
		(cd "$here" && go build -o "$dir/wireguard-go" golang.zx2c4.com/wireguard); }
	export WG_QUICK_USERSPACE_IMPLEMENTATION
fi
ip netns exec "$laptop" wg-quick up "$dir/$laptop.conf" >"$dir/wg.log" 2>&1

ip netns exec "$db" sh -c "while :; do printf 'HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n' | nc -v -n -l -p 8080; done" \
	>/dev/null 2>"$dir/server.log" &
sleep 0.5
ask() { ip netns exec "$1" curl -sS --max-time "$2" http://10.78.1.20:8080/ >"$dir/answer" 2>"$dir/curl.log"; }
check "the laptop reaches the server" ask "$laptop" 5
check "the server saw the endpoint, 10.78.1.50" grep -q '10\.78\.1\.50' "$dir/server.log"
"$spillway" wg-config --remove --name laptop
check "a client that was removed is cut off" not ask "$laptop" 2
check "the server still answers others" ask "$db" 2
