package flowlog

import (
	"fmt"
	"io"
	"testing"
)

func BenchmarkRecord(b *testing.B) {
	l := newLogger(b, Config{Writer: io.Discard})
	e := l.AddEndpoint(eni)
	stop := start(b, l)
	r := denied(e, "100.112.0.7:40000", "10.0.1.9:22")
	b.ReportAllocs()
	for b.Loop() {
		l.Record(&r)
	}
	b.StopTimer()
	if err := stop(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(l.Stats().LostRecords)/float64(b.N), "lost/record")
}

func BenchmarkAggregate(b *testing.B) {
	for _, keys := range []int{1, 1000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			a := NewAggregator(AggregatorConfig{})
			rs := make([]Record, keys)
			for i := range rs {
				rs[i] = denied(nil, "100.112.0.7:40000", fmt.Sprintf("10.0.1.9:%d", i))
			}
			emit := func(*Record) {}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				a.Add(&rs[i%keys], emit)
			}
		})
	}
}

func BenchmarkFormat(b *testing.B) {
	for _, name := range []string{FormatAWS2, FormatJSON} {
		b.Run(name, func(b *testing.B) {
			f, l := mustFormat(b, name), fixed()["egress"]
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = f.Append(buf[:0], l)
			}
		})
	}
}
