package lab

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	old := time.Now().Add(-time.Hour)
	abandon := func(name string) string {
		path := filepath.Join(os.TempDir(), name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		return path
	}
	inUse, err := newTempDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(inUse.path, old, old); err != nil {
		t.Fatal(err)
	}
	left, other := abandon(tempPrefix+"left"), abandon("other")
	next, err := newTempDir()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{inUse.path: true, left: false, other: true, next.path: true} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) == want {
			t.Errorf("%s is there: %t, want %t", path, !want, want)
		}
	}
	for _, d := range []*tempDir{inUse, next} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(d.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was not removed: %v", d.path, err)
		}
	}
}
