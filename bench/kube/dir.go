package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// prefix of the temporary directories, by which those of dead processes are found.
const prefix = "firstpacket-kube-"

// lockName is a file in each temporary directory that its owner holds locked; the kernel unlocks it when the owner
// dies.
const lockName = "lock"

// directory is where a cluster keeps its files.
type directory struct {
	name string
	lock *os.File // nil: the directory is the caller's and stays
}

// openDirectory takes the caller's directory, or makes a temporary one after removing what dead processes left behind.
func openDirectory(name string) (*directory, error) {
	if name != "" {
		return &directory{name: name}, os.MkdirAll(name, 0o700)
	}
	sweep()
	name, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	// The lock appears under its name only when it is held, so that nobody can take the directory for an abandoned one.
	pending := filepath.Join(name, lockName+".new")
	lock, err := os.OpenFile(pending, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		err = os.Rename(pending, filepath.Join(name, lockName))
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &directory{name: name, lock: lock}, nil
}

// sweep removes temporary directories whose owner died. What it may not remove belongs to another user.
func sweep() {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*", lockName))
	for _, name := range left {
		lock, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(name))
		}
		_ = lock.Close()
	}
}

func (d *directory) path(name string) string { return filepath.Join(d.name, name) }

func (d *directory) close() error {
	if d.lock == nil {
		return nil
	}
	return errors.Join(os.RemoveAll(d.name), d.lock.Close())
}
