package flowlog

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fe919326/spillway/internal/packet"
)

// The names of formats that ParseFormat knows.
const (
	FormatAWS2 = "aws2" // the 14 fields of version 2, the default
	FormatJSON = "json"
)

// ErrFormat is wrapped by errors about a format that is not known.
var ErrFormat = errors.New("flow log format")

// Format turns lines into text. It is immutable and safe for concurrent use.
type Format struct {
	json    bool
	version string
	fields  []*field
}

// field is one AWS field.
type field struct {
	name    string
	version int
	// append appends the value for a line that describes packets.
	append func(b []byte, l *Line, e *encodedInfo) []byte
	// always says that lines without packets show the value too.
	always bool
}

// ParseFormat reads a format: "" or "aws2" for the default AWS line, "json",
// or field names of AWS flow logs separated by spaces, each plain or as
// ${name}. The version field shows the highest version among the fields.
func ParseFormat(s string) (*Format, error) {
	switch s {
	case "", FormatAWS2:
		s = defaultFields
	case FormatJSON:
		return &Format{json: true}, nil
	}
	f := &Format{}
	highest := 2
	for _, word := range strings.Fields(s) {
		name := word
		if inner, ok := strings.CutPrefix(word, "${"); ok {
			if name, ok = strings.CutSuffix(inner, "}"); !ok {
				return nil, fmt.Errorf("%w: %q is not closed", ErrFormat, word)
			}
		}
		fd := fieldNamed(name)
		if fd == nil {
			return nil, fmt.Errorf("%w: no field %q", ErrFormat, name)
		}
		highest = max(highest, fd.version)
		f.fields = append(f.fields, fd)
	}
	if len(f.fields) == 0 {
		return nil, fmt.Errorf("%w: no fields", ErrFormat)
	}
	if len(f.fields) > 4*len(awsFields) {
		return nil, fmt.Errorf("%w: too many fields", ErrFormat)
	}
	f.version = strconv.Itoa(highest)
	return f, nil
}

// Append appends l as one line, newline included.
func (f *Format) Append(b []byte, l *Line) []byte {
	e := noEndpoint
	if l.Endpoint != nil {
		e = l.Endpoint.info.Load()
	}
	if f.json {
		return appendJSON(b, l, e)
	}
	for i, fd := range f.fields {
		if i > 0 {
			b = append(b, ' ')
		}
		switch {
		case fd.append == nil:
			b = append(b, '-')
		case fd.name == "version":
			b = append(b, f.version...)
		case l.Status != StatusOK && !fd.always:
			// What was lost has a size, and nothing else.
			if l.Status == StatusSkipData && (fd.name == "packets" || fd.name == "bytes") {
				b = fd.append(b, l, e)
			} else {
				b = append(b, '-')
			}
		default:
			b = fd.append(b, l, e)
		}
	}
	return append(b, '\n')
}

// fieldNamed returns the field of that name, or nil.
func fieldNamed(name string) *field {
	for i := range awsFields {
		if awsFields[i].name == name {
			return &awsFields[i]
		}
	}
	return nil
}

const defaultFields = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status"

// awsFields are the fields of AWS VPC flow logs and the version each came
// with. A field without an append function is one that has no meaning here.
// (VPC user guide, "Available fields"; version 6 belongs to another service.)
var awsFields = [...]field{
	{"version", 2, func(b []byte, _ *Line, _ *encodedInfo) []byte { return b }, true},
	{"account-id", 2, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.account...) }, true},
	{"interface-id", 2, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.id...) }, true},
	{"srcaddr", 2, appendSrcAddr, false},
	{"dstaddr", 2, appendDstAddr, false},
	{"srcport", 2, appendSrcPort, false},
	{"dstport", 2, appendDstPort, false},
	{"protocol", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return strconv.AppendUint(b, uint64(l.Proto), 10) }, false},
	{"packets", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return strconv.AppendUint(b, l.Packets, 10) }, false},
	{"bytes", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return strconv.AppendUint(b, l.Bytes, 10) }, false},
	{"start", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return strconv.AppendInt(b, l.Start.Unix(), 10) }, true},
	{"end", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return strconv.AppendInt(b, l.End.Unix(), 10) }, true},
	{"action", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return append(b, l.Action.String()...) }, false},
	{"log-status", 2, func(b []byte, l *Line, _ *encodedInfo) []byte { return append(b, l.Status.String()...) }, true},
	{"vpc-id", 3, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.vpc...) }, true},
	{"subnet-id", 3, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.subnet...) }, true},
	{"instance-id", 3, nil, true},
	{"tcp-flags", 3, appendTCPFlags, false},
	{"type", 3, appendType, false},
	{"pkt-srcaddr", 3, appendPktSrc, false},
	{"pkt-dstaddr", 3, appendPktDst, false},
	{"region", 4, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.region...) }, true},
	{"az-id", 4, func(b []byte, _ *Line, e *encodedInfo) []byte { return append(b, e.zone...) }, true},
	{"sublocation-type", 4, nil, true},
	{"sublocation-id", 4, nil, true},
	{"pkt-src-aws-service", 5, nil, true},
	{"pkt-dst-aws-service", 5, nil, true},
	{"flow-direction", 5, func(b []byte, l *Line, _ *encodedInfo) []byte { return append(b, l.Direction.String()...) }, false},
	{"traffic-path", 5, nil, true},
	{"ecs-cluster-arn", 7, nil, true},
	{"ecs-cluster-name", 7, nil, true},
	{"ecs-container-instance-arn", 7, nil, true},
	{"ecs-container-instance-id", 7, nil, true},
	{"ecs-container-id", 7, nil, true},
	{"ecs-second-container-id", 7, nil, true},
	{"ecs-service-name", 7, func(b []byte, l *Line, _ *encodedInfo) []byte { return appendWord(b, l.Service) }, false},
	{"ecs-task-definition-arn", 7, nil, true},
	{"ecs-task-arn", 7, nil, true},
	{"ecs-task-id", 7, func(b []byte, l *Line, _ *encodedInfo) []byte { return appendWord(b, l.Task) }, false},
	{"reject-reason", 8, appendRejectReason, false},
	{"resource-id", 9, nil, true},
	{"encryption-status", 10, nil, true},
}

func isICMP(proto uint8) bool { return proto == packet.ProtoICMP || proto == packet.ProtoICMPv6 }

func appendTCPFlags(b []byte, l *Line, _ *encodedInfo) []byte {
	if l.Proto != packet.ProtoTCP {
		return append(b, '0')
	}
	return strconv.AppendUint(b, uint64(l.TCPFlags), 10)
}

func appendRejectReason(b []byte, l *Line, _ *encodedInfo) []byte {
	if l.Action == Accept {
		return append(b, '-')
	}
	return append(b, l.Reason.String()...)
}
