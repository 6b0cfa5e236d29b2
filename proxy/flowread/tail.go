package flowread

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// poll lies between two looks at a file that has nothing new. Watching files does not work on every file system.
const poll = 200 * time.Millisecond

// Tail reads a file and goes on as it grows, is cut, or is replaced by a new one under its name, until its context
// ends, which is the end of the file.
type Tail struct {
	ctx  context.Context
	path string
	file *os.File
	read int64
}

// OpenTail opens the file, at its end if recent is false.
func OpenTail(ctx context.Context, path string, recent bool) (*Tail, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("flow log: %w", err)
	}
	t := &Tail{ctx: ctx, path: path, file: f}
	if !recent {
		if t.read, err = f.Seek(0, io.SeekEnd); err != nil {
			f.Close()
			return nil, fmt.Errorf("flow log: %w", err)
		}
	}
	return t, nil
}

// Read implements io.Reader. It waits for more at the end of the file.
func (t *Tail) Read(b []byte) (int, error) {
	for {
		n, err := t.file.Read(b)
		t.read += int64(n)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		moved, err := t.moved()
		if err != nil {
			return 0, err
		}
		if moved {
			continue
		}
		select {
		case <-t.ctx.Done():
			return 0, io.EOF
		case <-time.After(poll):
		}
	}
}

// moved turns to the beginning of a file that was cut, or to the new file of that name. The old one has been read to
// its end before.
func (t *Tail) moved() (bool, error) {
	old, err := t.file.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(t.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil // between two files
	case err != nil:
		return false, err
	case !os.SameFile(old, now):
		if old.Size() > t.read {
			return true, nil // written to while we looked
		}
		next, err := os.Open(t.path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		t.file.Close()
		t.file, t.read = next, 0
		return true, nil
	case now.Size() < t.read:
		t.read, err = t.file.Seek(0, io.SeekStart)
		return true, err
	}
	return false, nil
}

// Close closes the file; no Read may be running.
func (t *Tail) Close() error { return t.file.Close() }
