package flowlog

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"

	"github.com/fe919326/spillway/internal/clock"
)

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 2 * time.Second
	// writeWait bounds one write to a pipe that nobody reads.
	writeWait = time.Second
	// keepBuffer is how much memory stays with an empty buffer.
	keepBuffer = 256 << 10
)

// sink is a file that lines are written to, with a bounded buffer in front for
// the time when it cannot be written. Owned by one goroutine.
type sink struct {
	path string    // or
	w    io.Writer // fixed; never reopened
	max  int       // most bytes in buf

	file *os.File
	buf  []byte // whole lines not yet written, but for the first torn bytes
	// torn is how many bytes of the first line in buf are in the file already,
	// and tornIn which file, how long, that was.
	torn    int
	tornIn  os.FileInfo
	tornLen int64

	// After an error: when to try again, and how long to wait after the next.
	failed  error
	retryAt clock.Mono
	backoff time.Duration
}

// room reports whether n more bytes fit into the buffer.
func (s *sink) room(n int) bool { return len(s.buf)+n <= s.max }

// flush writes what is buffered. It returns an error only when a try failed,
// not while it waits for the next one; recovered tells that this try succeeded
// after others had failed.
func (s *sink) flush(now clock.Mono) (written int, recovered bool, err error) {
	if len(s.buf) == 0 || s.failed != nil && now < s.retryAt {
		return 0, false, nil
	}
	if s.w == nil && s.file == nil {
		if err = s.open(); err != nil {
			s.fail(err, now)
			return 0, false, err
		}
	}
	written, err = s.write()
	if err != nil {
		s.close() // the file may be gone, or replaced: open it anew
		s.fail(err, now)
		return written, false, err
	}
	recovered = s.failed != nil
	s.failed, s.backoff = nil, 0
	return written, recovered, nil
}

func (s *sink) fail(err error, now clock.Mono) {
	s.backoff = min(max(2*s.backoff, retryFirst), retryMost)
	s.failed, s.retryAt = err, now.Add(s.backoff)
}

// write writes buf and keeps what could not be written.
func (s *sink) write() (int, error) {
	var n int
	var err error
	rest := s.buf[s.torn:]
	if s.w != nil {
		n, err = s.w.Write(rest)
	} else {
		// Files on disk know no deadlines; for them this has no effect.
		_ = s.file.SetWriteDeadline(time.Now().Add(writeWait))
		n, err = s.file.Write(rest)
	}
	n = min(max(n, 0), len(rest))
	if err == nil && n < len(rest) {
		err = io.ErrShortWrite
	}
	end := s.torn + n
	whole := bytes.LastIndexByte(s.buf[:end], '\n') + 1
	s.torn = end - whole
	s.buf = append(s.buf[:0], s.buf[whole:]...)
	if len(s.buf) == 0 && cap(s.buf) > keepBuffer {
		s.buf = nil
	}
	if s.torn > 0 && s.file != nil {
		if fi, serr := s.file.Stat(); serr == nil {
			s.tornIn, s.tornLen = fi, fi.Size()
		}
	}
	return n, err
}

// open opens the file. Where it ends with a torn line of ours the rest of that
// line is what comes next; where it ends with any other torn line, of a
// process that was killed or of ours before the file was changed, a newline
// comes first so that only that one line is lost.
func (s *sink) open() error {
	f, err := openAppend(s.path)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if fi.IsDir() {
		return errors.Join(&os.PathError{Op: "open", Path: s.path, Err: errors.New("is a directory")}, f.Close())
	}
	if s.torn > 0 && s.tornIn != nil && os.SameFile(s.tornIn, fi) && fi.Size() == s.tornLen {
		s.file = f
		return nil
	}
	s.torn = 0
	if fi.Mode().IsRegular() && fi.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], fi.Size()-1); err == nil && last[0] != '\n' {
			if _, err := f.Write([]byte{'\n'}); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	s.file = f
	return nil
}

// close closes the file; the next flush opens it anew.
func (s *sink) close() {
	if s.file != nil {
		// The bytes are with the kernel already; an error here is one that the
		// next write will meet too.
		_ = s.file.Close()
		s.file = nil
	}
}

// retryNow lets the next flush try at once.
func (s *sink) retryNow() { s.retryAt = 0 }
