package flowlog

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fe919326/spillway/internal/clock"
	"github.com/fe919326/spillway/internal/packet"
)

func mustFormat(t testing.TB, s string) *Format {
	t.Helper()
	f, err := ParseFormat(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fixed are lines of every kind, at fixed times.
func fixed() map[string]*Line {
	e := NewEndpoint(eni)
	start := time.Unix(1431280876, 500)
	end := start.Add(58 * time.Second)
	at := func(r Record, s Status) *Line {
		return &Line{Record: r, Status: s, Start: start, End: end, Made: end.Add(time.Second)}
	}
	flow := Record{
		Endpoint: e, Task: "task-1", Service: "web", Group: "sg-db", Rule: 2,
		Inner: ap("100.112.0.7:40000"), Outside: ap("10.0.1.50:20641"), Remote: ap("10.0.1.9:5432"),
		Proto: packet.ProtoTCP, Packets: 20, Bytes: 4249, TCPFlags: 3, Direction: Egress, Action: Accept, Reason: packet.OK,
	}
	back := flow
	back.Direction, back.TCPFlags, back.Packets, back.Bytes = Ingress, 19, 18, 90210
	v6 := flow
	v6.Inner, v6.Outside, v6.Remote = ap("[fd7a::7]:40000"), ap("[fd00:1::50]:20641"), ap("[fd00:1::9]:5432")
	refused := flow
	refused.Outside, refused.Group, refused.Action, refused.Reason = netip.AddrPort{}, "", Reject, packet.DeniedByPolicy
	refused.Packets, refused.Bytes, refused.TCPFlags = 1, 60, 2
	ping := refused
	ping.Proto, ping.ICMPType, ping.Inner, ping.Remote = packet.ProtoICMP, 8, ap("100.112.0.7:77"), ap("10.0.1.9:0")
	unsolicited := Record{
		Endpoint: e, Outside: ap("10.0.1.50:22"), Remote: ap("10.0.1.66:51000"), Proto: packet.ProtoTCP, Packets: 1, Bytes: 44,
		TCPFlags: 2, Direction: Ingress, Action: Reject, Reason: packet.Unsolicited,
	}
	lost := at(Record{Endpoint: e, Packets: 7, Bytes: 420}, StatusSkipData)
	lost.Lost = 5
	return map[string]*Line{
		"egress": at(flow, StatusOK), "ingress": at(back, StatusOK), "IPv6": at(v6, StatusOK),
		"refused": at(refused, StatusOK), "ping": at(ping, StatusOK), "unsolicited": at(unsolicited, StatusOK),
		"nodata": at(Record{Endpoint: e}, StatusNoData), "skipdata": lost,
		"unknown": at(Record{Remote: ap("10.0.1.66:1"), Proto: 132, Packets: 1, Bytes: 20}, StatusOK),
	}
}

func TestGoldenLines(t *testing.T) {
	const custom = "${version} ${vpc-id} ${subnet-id} ${instance-id} ${tcp-flags} ${type} ${pkt-srcaddr} ${pkt-dstaddr} ${region} ${az-id} " +
		"${flow-direction} ${traffic-path} ${ecs-service-name} ${ecs-task-id} ${reject-reason} ${log-status}"
	tests := []struct{ format, line, want string }{
		{"", "egress", "2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.50 10.0.1.9 20641 5432 6 20 4249 1431280876 1431280934 ACCEPT OK"},
		{"aws2", "ingress", "2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.9 10.0.1.50 5432 20641 6 18 90210 1431280876 1431280934 ACCEPT OK"},
		{"aws2", "IPv6", "2 123456789012 eni-0a1b2c3d4e5f60718 fd00:1::50 fd00:1::9 20641 5432 6 20 4249 1431280876 1431280934 ACCEPT OK"},
		{"aws2", "refused", "2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.50 10.0.1.9 40000 5432 6 1 60 1431280876 1431280934 REJECT OK"},
		{"aws2", "ping", "2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.50 10.0.1.9 0 0 1 1 60 1431280876 1431280934 REJECT OK"},
		{"aws2", "unsolicited", "2 123456789012 eni-0a1b2c3d4e5f60718 10.0.1.66 10.0.1.50 51000 22 6 1 44 1431280876 1431280934 REJECT OK"},
		{"aws2", "nodata", "2 123456789012 eni-0a1b2c3d4e5f60718 - - - - - - - 1431280876 1431280934 - NODATA"},
		{"aws2", "skipdata", "2 123456789012 eni-0a1b2c3d4e5f60718 - - - - - 7 420 1431280876 1431280934 - SKIPDATA"},
		{custom, "egress", "8 vpc-1 subnet-a - 3 IPv4 100.112.0.7 10.0.1.9 us-east-1 use1-az1 egress - web task-1 - OK"},
		{custom, "ingress", "8 vpc-1 subnet-a - 19 IPv4 10.0.1.9 100.112.0.7 us-east-1 use1-az1 ingress - web task-1 - OK"},
		{custom, "IPv6", "8 vpc-1 subnet-a - 3 IPv6 fd7a::7 fd00:1::9 us-east-1 use1-az1 egress - web task-1 - OK"},
		{custom, "refused", "8 vpc-1 subnet-a - 2 IPv4 100.112.0.7 10.0.1.9 us-east-1 use1-az1 egress - web task-1 denied-by-policy OK"},
		{custom, "unsolicited", "8 vpc-1 subnet-a - 2 IPv4 10.0.1.66 10.0.1.50 us-east-1 use1-az1 ingress - - - unsolicited OK"},
		{custom, "nodata", "8 vpc-1 subnet-a - - - - - us-east-1 use1-az1 - - - - - NODATA"},
		{"version srcaddr pkt-srcaddr", "egress", "3 10.0.1.50 100.112.0.7"},
		{"version az-id", "egress", "4 use1-az1"},
		{"version encryption-status log-status", "skipdata", "10 - SKIPDATA"},
		{"json", "egress", `{"time":"2015-05-10T18:02:15.000000500Z","log_status":"OK","account":"123456789012","endpoint":"eni-0a1b2c3d4e5f60718","subnet":"subnet-a","vpc":"vpc-1","zone":"use1-az1","region":"us-east-1","task":"task-1","service":"web","direction":"egress","action":"ACCEPT","reason":"ok","group":"sg-db","rule":2,"protocol":"tcp","inner":"100.112.0.7:40000","outside":"10.0.1.50:20641","remote":"10.0.1.9:5432","tcp_flags":3,"packets":20,"bytes":4249,"start":"2015-05-10T18:01:16.000000500Z","end":"2015-05-10T18:02:14.000000500Z"}`},
		{"json", "ping", `{"time":"2015-05-10T18:02:15.000000500Z","log_status":"OK","account":"123456789012","endpoint":"eni-0a1b2c3d4e5f60718","subnet":"subnet-a","vpc":"vpc-1","zone":"use1-az1","region":"us-east-1","task":"task-1","service":"web","direction":"egress","action":"REJECT","reason":"denied-by-policy","protocol":"icmp","inner":"100.112.0.7:77","outside":"10.0.1.50:0","remote":"10.0.1.9:0","icmp_type":8,"icmp_code":0,"packets":1,"bytes":60,"start":"2015-05-10T18:01:16.000000500Z","end":"2015-05-10T18:02:14.000000500Z"}`},
		{"json", "skipdata", `{"time":"2015-05-10T18:02:15.000000500Z","log_status":"SKIPDATA","account":"123456789012","endpoint":"eni-0a1b2c3d4e5f60718","subnet":"subnet-a","vpc":"vpc-1","zone":"use1-az1","region":"us-east-1","packets":7,"bytes":420,"start":"2015-05-10T18:01:16.000000500Z","end":"2015-05-10T18:02:14.000000500Z","lost":5}`},
		{"json", "nodata", `{"time":"2015-05-10T18:02:15.000000500Z","log_status":"NODATA","account":"123456789012","endpoint":"eni-0a1b2c3d4e5f60718","subnet":"subnet-a","vpc":"vpc-1","zone":"use1-az1","region":"us-east-1","start":"2015-05-10T18:01:16.000000500Z","end":"2015-05-10T18:02:14.000000500Z"}`},
		{"json", "unknown", `{"time":"2015-05-10T18:02:15.000000500Z","log_status":"OK","direction":"-","action":"REJECT","reason":"undecided","protocol":"132","remote":"10.0.1.66:1","packets":1,"bytes":20,"start":"2015-05-10T18:01:16.000000500Z","end":"2015-05-10T18:02:14.000000500Z"}`},
	}
	lines := fixed()
	for _, tt := range tests {
		got := string(mustFormat(t, tt.format).Append(nil, lines[tt.line]))
		if got != tt.want+"\n" {
			t.Errorf("%s as %q:\n got %s want %s", tt.line, tt.format, got, tt.want)
		}
		if strings.HasPrefix(tt.format, "aws") {
			parseAWS(t, got)
		}
	}
}

func TestFieldTable(t *testing.T) {
	// The fields as the VPC user guide lists them, with their versions.
	want := map[int]string{
		2: defaultFields, 3: "vpc-id subnet-id instance-id tcp-flags type pkt-srcaddr pkt-dstaddr",
		4: "region az-id sublocation-type sublocation-id", 5: "pkt-src-aws-service pkt-dst-aws-service flow-direction traffic-path",
		7: "ecs-cluster-arn ecs-cluster-name ecs-container-instance-arn ecs-container-instance-id ecs-container-id ecs-second-container-id ecs-service-name ecs-task-definition-arn ecs-task-arn ecs-task-id",
		8: "reject-reason", 9: "resource-id", 10: "encryption-status",
	}
	n := 0
	for version, names := range want {
		for _, name := range strings.Fields(names) {
			n++
			if f := fieldNamed(name); f == nil || f.version != version {
				t.Errorf("field %s of version %d: %+v", name, version, f)
			}
		}
	}
	if n != len(awsFields) {
		t.Errorf("%d fields, AWS documents %d", len(awsFields), n)
	}
}

func TestParseFormatErrors(t *testing.T) {
	for _, s := range []string{"aws3", "version nonsense", "${version", "   ", "$version", strings.Repeat("start ", 1000)} {
		if _, err := ParseFormat(s); !errors.Is(err, ErrFormat) {
			t.Errorf("ParseFormat(%.30q) = %v, want ErrFormat", s, err)
		}
	}
}

func TestZ40_NoTextBreaksALine(t *testing.T) {
	nasty := []string{
		"a b", "a\nb", "a\r\nREJECT", "\x1b[31m", `"`, `\`, "'", ",", "=1+1", "%0A", "-", "", "\x00", "\u2028", "\u202e", "\u0085", "\xff\xfe",
		"😀", strings.Repeat("x", 10<<20), "${version}", "<script>",
	}
	for _, text := range nasty {
		info := EndpointInfo{Account: text, ID: text, Subnet: text, VPC: text, Zone: text, Region: text}
		l := &Line{Record: Record{
			Endpoint: NewEndpoint(info), Task: text, Service: text, Group: text + "g",
			Remote: netip.AddrPortFrom(netip.MustParseAddr("fe80::1%"+"eth0\n x"), 1), Action: Accept, Reason: packet.OK,
		}}
		checkLine(t, l)
	}
}

// checkLine formats l in every format and checks what must hold of every line.
func checkLine(t *testing.T, l *Line) {
	t.Helper()
	all := make([]string, len(awsFields))
	for i := range awsFields {
		all[i] = "${" + awsFields[i].name + "}"
	}
	for _, format := range []string{FormatAWS2, strings.Join(all, " "), FormatJSON} {
		f := mustFormat(t, format)
		line := f.Append(nil, l)
		if len(line) > 16<<10 {
			t.Fatalf("a line of %d bytes", len(line))
		}
		for i, c := range line {
			if (c < 0x20 || c > 0x7e) && (c != '\n' || i != len(line)-1) {
				t.Fatalf("byte %#x in a line: %q", c, line)
			}
		}
		if line[len(line)-1] != '\n' {
			t.Fatalf("no newline at the end: %q", line)
		}
		if !f.json {
			words := strings.Split(string(line[:len(line)-1]), " ")
			if len(words) != len(f.fields) {
				t.Fatalf("%d words for %d fields: %q", len(words), len(f.fields), line)
			}
			for _, w := range words {
				if w == "" || strings.ContainsAny(w, `"'\,`) {
					t.Fatalf("word %q in %q", w, line)
				}
			}
			continue
		}
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("not JSON: %v: %q", err, line)
		}
		if l.Status == StatusOK && len(l.Task) < maxText && utf8.ValidString(l.Task) && l.Task != "" && m["task"] != l.Task {
			t.Fatalf("task %q reads back as %q", l.Task, m["task"])
		}
	}
}

func TestAppendRFC3339(t *testing.T) {
	for _, unix := range []int64{0, 1, 951782399, 951782400, 4102444799, 253402300799} {
		at := time.Unix(unix, unix%1e9)
		if got, want := string(appendRFC3339(nil, at)), at.UTC().Format("2006-01-02T15:04:05.000000000Z"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func FuzzFormat(f *testing.F) {
	f.Add("acct", "eni-1", "task\n", "web ", "sg\"", []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, uint16(1), uint16(2), uint8(6), uint8(1), uint8(1), uint8(12), uint8(0), int64(0), int64(5))
	f.Add("", "", "\x1b[0m", "\u202e", "", make([]byte, 16), []byte{}, uint16(0), uint16(0), uint8(58), uint8(9), uint8(0), uint8(255), uint8(2), int64(-1)<<62, int64(1)<<62)
	f.Fuzz(func(t *testing.T, account, id, task, service, group string, inner, remote []byte, p1, p2 uint16, proto, dir, action, reason, status uint8, first, last int64) {
		a, _ := netip.AddrFromSlice(inner)
		b, _ := netip.AddrFromSlice(remote)
		l := &Line{
			Record: Record{
				Endpoint: NewEndpoint(EndpointInfo{Account: account, ID: id, Subnet: service, VPC: group, Zone: task}),
				Task:     task, Service: service, Group: group, Rule: int32(p1), Inner: netip.AddrPortFrom(a, p1), Remote: netip.AddrPortFrom(b, p2),
				Proto: proto, ICMPType: dir, ICMPCode: action, Direction: Direction(dir), Action: Action(action), Reason: Reason(reason),
				Packets: uint64(first), Bytes: uint64(last), First: clock.Mono(first), Last: clock.Mono(last),
			},
			Status: Status(status), Made: time.Unix(first>>33, 0),
		}
		wallTimes(l, clock.Mono(last))
		if l.End.Before(l.Start) {
			t.Fatalf("end %v before start %v", l.End, l.Start)
		}
		checkLine(t, l)
	})
}
