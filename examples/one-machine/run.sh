#!/bin/sh
# One machine that does everything: a private subnet, an endpoint on it, and a
# task that reaches the subnet through the endpoint. Checks itself, removes
# what it made, and fails if anything is not as it says. Needs root, ip(8),
# curl and nc. SPILLWAY names the binary (default: spillway on the PATH).
set -eu
spillway=$(command -v "${SPILLWAY:-spillway}") || { echo "no spillway: make build, then SPILLWAY=bin/spillway $0" >&2; exit 1; }
dir=$(mktemp -d) tag=$$
sub=sub$tag db=db$tag task=task$tag port=$((20000 + tag % 30000))
export SPILLWAY_API="unix://$dir/run/api.sock"

clean() {
	code=$?
	trap - EXIT INT TERM
	if [ -n "${up:-}" ]; then kill "$up" 2>/dev/null || :; wait "$up" || code=1; fi
	[ ! -e "$dir/spillway.yaml" ] || "$spillway" cleanup --config "$dir/spillway.yaml" >/dev/null || code=1
	for ns in "$db" "$task"; do
		ip netns pids "$ns" 2>/dev/null | xargs -r kill 2>/dev/null || :
		ip netns del "$ns" 2>/dev/null || :
	done
	for link in "$sub" "$task"; do ip link del "$link" 2>/dev/null || :; done
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

# The private subnet 10.77.1.0/24: this machine is .10 on it, a server is .20.
ip link set lo up
ip netns add "$db"
ip link add "$sub" type veth peer name eth0 netns "$db"
ip addr add 10.77.1.10/24 dev "$sub"
ip link set "$sub" up
ip -n "$db" addr add 10.77.1.20/24 dev eth0
ip -n "$db" link set eth0 up

# A task as a container runtime would make it: its primary interface is eth0.
ip netns add "$task"
ip link add "$task" type veth peer name eth0 netns "$task"
ip addr add 172.31.77.1/24 dev "$task"
ip link set "$task" up
ip -n "$task" addr add 172.31.77.2/24 dev eth0
ip -n "$task" link set eth0 up
ip -n "$task" link set lo up
ip -n "$task" route add default via 172.31.77.1

cat >"$dir/spillway.yaml" <<YAML
machine: example
state_dir: $dir/state
run_dir: $dir/run
listen: { wireguard: "127.0.0.1:$port" }
limits: { max_flows: 4096 }
subnets:
  - { name: subnet-a, cidrs: [10.77.1.0/24], interface: $sub, isolate: netns, addresses: [10.77.1.50-10.77.1.59] }
security_groups:
  - { name: sg-web, egress: [ { protocol: tcp, ports: 8080, cidrs: [10.77.1.0/24] } ] }
connectors:
  - { name: my-connector, subnets: [subnet-a], security_groups: [sg-web] }
services:
  - { name: web, egress: VPC, connector: my-connector }
YAML
"$spillway" up --config "$dir/spillway.yaml" 2>"$dir/up.log" &
up=$!
check "spillway is ready" "$spillway" status --wait >"$dir/status.log" 2>&1
"$spillway" attach --netns "/var/run/netns/$task" --service web --name web1

# The server answers one request, and nc writes down who asked.
printf 'HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n' |
	ip netns exec "$db" nc -v -n -l -p 8080 >/dev/null 2>"$dir/server.log" &
for _ in 1 2 3 4 5 6 7 8 9 10; do grep -qis listening "$dir/server.log" && break; sleep 0.1; done
ask() { ip netns exec "$1" curl -sS --max-time "${3:-5}" "$2" >"$dir/answer" 2>"$dir/curl.log"; }
check "the task reaches the server" ask "$task" http://10.77.1.20:8080/
check "the server says hello" grep -qx hello "$dir/answer"
check "the server saw the endpoint, 10.77.1.50" grep -q '10\.77\.1\.50' "$dir/server.log"
check "no rule, no way: port 8081 is refused" not ask "$task" http://10.77.1.20:8081/
check "nobody on the subnet gets in" not ask "$db" http://10.77.1.50:8080/ 1
"$spillway" endpoint list >"$dir/endpoints.log"
check "both refusals were counted" grep -q 'denied-by-policy=1 unsolicited=1' "$dir/endpoints.log"
"$spillway" detach web1
