// Package binary finds the firstpacket program for tests that run agents.
package binary

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Env names a program to use instead of building one.
const Env = "FIRSTPACKET_BINARY"

var built struct {
	sync.Mutex
	dir string
}

// Path is the program that Env names, or one that is built from this module on the first call; Remove takes it away.
func Path() (string, error) {
	if path := os.Getenv(Env); path != "" {
		return path, nil
	}
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := build()
		if err != nil {
			return "", err
		}
		built.dir = dir
	}
	return filepath.Join(built.dir, "firstpacket"), nil
}

func build() (string, error) {
	dir, err := os.MkdirTemp("", "firstpacket-binary-")
	if err != nil {
		return "", fmt.Errorf("make a directory for the program: %w", err)
	}
	const program = "github.com/firstpacket/firstpacket/cmd/firstpacket"
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "firstpacket"), program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		err = fmt.Errorf("build firstpacket: %w: %s", err, strings.TrimSpace(string(out)))
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// Remove removes what Path built. TestMain calls it at the end.
func Remove() error {
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		return nil
	}
	dir := built.dir
	built.dir = ""
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the program: %w", err)
	}
	return nil
}
