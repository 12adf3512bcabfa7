package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fe919326/spillway/engine"
	"github.com/fe919326/spillway/engine/api"
)

// maxBody is the largest request, in bytes: a snapshot with thousands of
// endpoints fits.
const maxBody = 16 << 20

// listenUnix makes a unix socket that only its owner can use. Whatever was
// left at path by an earlier run is replaced if it is a socket of ours; a
// foreign file stays and is an error. The socket is made in a private
// directory and renamed into place, so that it is never open to others.
func listenUnix(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of socket %s: %w", path, err)
	}
	if info, err := os.Lstat(path); err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		if info.Mode().Type() != fs.ModeSocket || !ok || int(st.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s exists and is not a socket of ours: remove it, or choose another listen.api", path)
		}
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("a spillway listens on %s already", path)
		}
	}
	tmp, err := os.MkdirTemp(dir, ".sock")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(tmp, "s")})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(filepath.Join(tmp, "s"), 0o600), os.Rename(filepath.Join(tmp, "s"), path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// serve answers requests on l until ctx ends, then drains for a moment.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(h, maxBody),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// badRequest is an error of the caller's making.
type badRequest struct{ error }

func (e badRequest) Unwrap() error { return e.error }

// handler turns a function of a request into an http.Handler: its result is
// written as JSON, its error as an api.Error.
func handler[Out any](f func(*http.Request) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here means that the client has gone: nobody is left to tell.
	_ = json.NewEncoder(w).Encode(v)
}

func writeError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var bad badRequest
	switch {
	case errors.As(err, &bad):
		status = http.StatusBadRequest
	case errors.Is(err, engine.ErrUnknownTask), errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, engine.ErrTaskExists):
		status = http.StatusConflict
	}
	writeJSON(w, status, &api.Error{Message: err.Error()})
}

// errNotFound marks an error about a thing that does not exist.
var errNotFound = errors.New("not found")

// decode reads one JSON value, and nothing else, from the request. Unknown
// keys are refused: a key that is misspelt must not be lost.
func decode[In any](r *http.Request) (In, error) {
	var in In
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return in, badRequest{fmt.Errorf("request body: %w", err)}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return in, badRequest{errors.New("request body: more than one JSON value")}
	}
	return in, nil
}
