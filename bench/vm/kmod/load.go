package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Load loads the module of that name or alias, with what it needs, from the files below root. Modules that are loaded
// already are no error.
func (x *Index) Load(root, name string) error {
	order, err := x.Order(name)
	if err != nil {
		return err
	}
	for _, n := range order {
		if err := loadFile(filepath.Join(root, x.Modules[n].Path)); err != nil {
			return fmt.Errorf("load kernel module %s: %w", n, err)
		}
	}
	return nil
}

func loadFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
