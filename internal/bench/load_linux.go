package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LoadVerb is the first argument with which the benchmark starts itself again
// to make load: the program must pass what follows to Load.
const LoadVerb = "load"

// Ports of the load's servers.
const (
	echoPort  = 7001 // and the next echoPorts-1
	echoPorts = 8    // so that client ports do not run out
	udpPort   = 7100
	bulkPort  = 5201 // and the next ones
)

// readyLine is what servers print when they listen.
const readyLine = "ready\n"

// Loads report as JSON on standard output.
type (
	connectReport struct{ Done, Failed int64 }
	latencyReport struct{ P50, P99 time.Duration }
	sendReport    struct{ Sent int64 }
	sinkReport    struct {
		Received int64 // in all
		InTime   int64 // within the asked time after the first
	}
)

// Load does one part of the load: "echo", "sink", "connect", "latency" or
// "send", and prints its report to out. It returns when its time is over.
func Load(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("load: which?")
	}
	fs := flag.NewFlagSet("load "+args[0], flag.ContinueOnError)
	to := fs.String("to", "", "address of the server")
	duration := fs.Duration("for", time.Second, "how long")
	workers := fs.Int("workers", 16, "connections at a time")
	rate := fs.Int("rate", 0, "packets a second; 0 means as many as possible")
	size := fs.Int("size", 64, "bytes of payload")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	switch args[0] {
	case "echo":
		return echo(ctx, out)
	case "sink":
		return sink(ctx, *duration, out)
	case "connect":
		return connect(ctx, *to, *workers, out)
	case "latency":
		return latency(ctx, *to, *size, out)
	case "send":
		return send(ctx, *to, *rate, *size, *duration, out)
	}
	return fmt.Errorf("load: no %q", args[0])
}

// congestion is the congestion control of every connection: on another one
// the modes differ less. It is chosen per socket, because a namespace may only
// be given one that the whole machine allows to everybody.
const congestion = "cubic"

// useCubic is a net.Dialer's or net.ListenConfig's Control.
func useCubic(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion)
	}); cerr != nil {
		return cerr
	}
	return err
}

func report(out io.Writer, v any) error { return json.NewEncoder(out).Encode(v) }

// echo answers on all echo ports with what it is sent.
func echo(ctx context.Context, out io.Writer) error {
	lc := net.ListenConfig{Control: useCubic}
	lc.SetMultipathTCP(false)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range echoPorts {
		l, err := lc.Listen(ctx, "tcp4", ":"+strconv.Itoa(echoPort+i))
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { l.Close() })()
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return // closed at the end
				}
				go echoOne(c) // ends with its client, and with the process
			}
		})
	}
	if _, err := io.WriteString(out, readyLine); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func echoOne(c net.Conn) {
	defer c.Close()
	var b [2048]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// connect opens connections as fast as it can: connect, a byte there and
// back, close.
func connect(ctx context.Context, to string, workers int, out io.Writer) error {
	var done, failed atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				if err := connectOnce(net.JoinHostPort(to, strconv.Itoa(echoPort+i%echoPorts))); err == nil {
					done.Add(1)
				} else if ctx.Err() == nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return report(out, connectReport{done.Load(), failed.Load()})
}

func connectOnce(to string) error {
	d := net.Dialer{Timeout: 2 * time.Second, KeepAlive: -1, Control: useCubic}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	b := [1]byte{1}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err = c.Read(b[:])
	return err
}

// latency sends a request, waits for the answer, and so on.
func latency(ctx context.Context, to string, size int, out io.Writer) error {
	d := net.Dialer{Timeout: 2 * time.Second, Control: useCubic}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp4", net.JoinHostPort(to, strconv.Itoa(echoPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, size)
	var took []time.Duration
	for ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		begin := time.Now()
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		took = append(took, time.Since(begin))
	}
	if len(took) == 0 {
		return errors.New("load: no request was answered in time")
	}
	slices.Sort(took)
	return report(out, latencyReport{P50: took[len(took)/2], P99: took[len(took)*99/100]})
}

// LoadMain runs Load for a program whose arguments begin with LoadVerb, and
// returns its exit code.
func LoadMain(ctx context.Context, args []string) int {
	if err := Load(ctx, args, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
