package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tempPrefix begins the names of temporary directories.
	tempPrefix = "firstpacket-lab-"
	// tempGrace is the age up to which a directory without a lock may be one that is just being made.
	tempGrace = time.Minute
)

// tempDir is a directory that the process holds a lock on. The kernel lets go of the lock when the process ends, and
// the next lab that makes a directory in the same place removes those that a crash left behind.
type tempDir struct {
	path string
	lock *os.File
}

func newTempDir() (*tempDir, error) {
	if err := sweep(os.TempDir()); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp("", tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the lab's directory: %w", err), os.RemoveAll(path))
	}
	return &tempDir{path, lock}, nil
}

func (d *tempDir) remove() error { return errors.Join(os.RemoveAll(d.path), d.lock.Close()) }

// lockDir opens and locks a directory. The lock goes with the file.
func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes the directories of labs that are no more. Those of other users are left alone.
func sweep(parent string) error {
	paths, err := filepath.Glob(filepath.Join(parent, tempPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for directories of earlier labs: %w", err)
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < tempGrace {
			continue
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Getuid() {
			continue
		}
		lock, err := lockDir(path)
		if err != nil {
			continue // in use, or not ours
		}
		if err := errors.Join(os.RemoveAll(path), lock.Close()); err != nil {
			return fmt.Errorf("remove the directory of an earlier lab: %w", err)
		}
	}
	return nil
}
