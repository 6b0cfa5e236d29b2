package flowlog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Rotation bounds what a log takes on disk: the file, and the files that it was before.
type Rotation struct {
	// MaxBytes is the size at which the file is renamed to FILE.1, what was FILE.1 to FILE.2 and so on, and a new one
	// begun; 0 lets it grow.
	MaxBytes int64
	// Backups is how many of the renamed ones stay; 0 stands for none: the file begins anew.
	Backups int
}

// lookInterval lies between two looks at whether the file is still the one of its name.
const lookInterval = time.Second

// Open opens the file that lines are appended to, made if it is not there; "-" is standard output, which the returned
// closer leaves open. Somebody else may rename or remove the file, as logrotate does: within a second, writing goes on
// in a new one, without any signal.
func Open(path string, r Rotation) (io.WriteCloser, error) {
	if path == "-" {
		return stdout{}, nil
	}
	if r.MaxBytes < 0 || r.Backups < 0 {
		return nil, fmt.Errorf("flow log: negative value in %+v", r)
	}
	f := &file{path: path, Rotation: r}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("flow log: %w", err)
	}
	return f, nil
}

type stdout struct{}

func (stdout) Write(b []byte) (int, error) { return os.Stdout.Write(b) }
func (stdout) Close() error                { return nil }

// file is a log file that is rotated. It is for one goroutine.
type file struct {
	path string
	Rotation
	file *os.File
	// regular: pipes and devices are neither rotated nor looked at.
	regular bool
	size    int64
	looked  time.Time
}

// open opens the file of that name, and closes the one before.
func (f *file) open() error {
	// os.OpenFile sets O_CLOEXEC itself.
	next, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	info, err := next.Stat()
	if err != nil {
		next.Close()
		return err
	}
	if f.file != nil {
		f.file.Close()
	}
	f.file, f.regular, f.size, f.looked = next, info.Mode().IsRegular(), info.Size(), time.Now()
	return nil
}

// Write appends one line.
func (f *file) Write(line []byte) (int, error) {
	if f.regular {
		full := f.MaxBytes > 0 && f.size > 0 && f.size+int64(len(line)) > f.MaxBytes
		if full || time.Since(f.looked) >= lookInterval {
			if err := f.look(); err != nil {
				return 0, err
			}
		}
		if f.MaxBytes > 0 && f.size > 0 && f.size+int64(len(line)) > f.MaxBytes {
			if err := f.rotate(); err != nil {
				return 0, err
			}
		}
	}
	n, err := f.file.Write(line)
	f.size += int64(n)
	return n, err
}

// look turns to the file of the name if that is another one now: somebody has rotated it. That may be another agent,
// while two overlap, so it comes before every rotation of ours.
func (f *file) look() error {
	f.looked = time.Now()
	named, err := os.Stat(f.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	own, ownErr := f.file.Stat()
	if ownErr != nil {
		return ownErr
	}
	if err == nil && os.SameFile(named, own) {
		f.size = own.Size() // others may have written to it, or cut it
		return nil
	}
	return f.open()
}

// rotate renames the file, and those before it, and begins a new one.
func (f *file) rotate() error {
	for i := f.Backups; i > 0; i-- {
		if err := os.Rename(f.backup(i-1), f.backup(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if f.Backups == 0 {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return f.open()
}

// backup is the name of the i-th file before the present one, which is the 0th.
func (f *file) backup(i int) string {
	if i == 0 {
		return f.path
	}
	return fmt.Sprintf("%s.%d", f.path, i)
}

// Close closes the file.
func (f *file) Close() error { return f.file.Close() }
