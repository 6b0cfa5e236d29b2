package flowlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// logFile opens a log whose lines take 10 bytes.
func logFile(t *testing.T, r Rotation) (path string, put func(i int)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "flows.log")
	w, err := Open(path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return path, func(i int) {
		t.Helper()
		if _, err := fmt.Fprintf(w, "line %04d\n", i); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the lines of the files, the first one first.
func read(t *testing.T, paths ...string) string {
	t.Helper()
	var all []string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.ReplaceAll(strings.ReplaceAll(string(b), "line 000", ""), "\n", ""))
	}
	return strings.Join(all, " ")
}

// TestSizeIsBounded: whatever is written, the files take no more than was asked for, and have the newest lines.
func TestSizeIsBounded(t *testing.T) {
	for _, c := range []struct {
		rotation Rotation
		files    int
		want     string
	}{
		{Rotation{}, 1, "123456789"},
		{Rotation{MaxBytes: 30, Backups: 2}, 3, "123 456 789"},
		{Rotation{MaxBytes: 35, Backups: 1}, 2, "456 789"},
		{Rotation{MaxBytes: 40}, 1, "9"},
		{Rotation{MaxBytes: 1, Backups: 1}, 2, "8 9"}, // a line is never cut
	} {
		path, put := logFile(t, c.rotation)
		for i := 1; i <= 9; i++ {
			put(i)
		}
		paths := []string{path}
		for i := 1; i < c.files; i++ {
			paths = append([]string{fmt.Sprintf("%s.%d", path, i)}, paths...)
		}
		if got := read(t, paths...); got != c.want {
			t.Errorf("%+v: %q, want %q", c.rotation, got, c.want)
		}
		if found, err := filepath.Glob(path + "*"); err != nil || len(found) != c.files {
			t.Errorf("%+v: files %q, %v", c.rotation, found, err)
		}
	}
}

// TestOthersRotate: logrotate may rename, remove or cut the file, without telling.
func TestOthersRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, put := logFile(t, Rotation{MaxBytes: 30, Backups: 1})
		put(1)
		if err := os.Rename(path, path+".old"); err != nil {
			t.Fatal(err)
		}
		put(2) // nobody looks at the name for each line
		time.Sleep(lookInterval)
		put(3)
		if got := read(t, path+".old", path); got != "12 3" {
			t.Errorf("renamed: %q", got)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookInterval)
		put(4)
		put(5)
		put(6)
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		put(7) // looks before it would rotate: there is room again
		if got := read(t, path); got != "7" {
			t.Errorf("cut: %q", got)
		}
		if found, err := filepath.Glob(path + "*"); err != nil || len(found) != 2 {
			t.Errorf("files %q, %v", found, err)
		}
	})
}

// TestTwoWriters: agents overlap while one takes over from the other. Together they lose nothing.
func TestTwoWriters(t *testing.T) {
	path, put := logFile(t, Rotation{MaxBytes: 30, Backups: 3})
	other, err := Open(path, Rotation{MaxBytes: 30, Backups: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for i := range 8 {
		if i%2 == 0 {
			put(i)
		} else if _, err := fmt.Fprintf(other, "line %04d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	found, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	all := read(t, found...)
	for i := range 8 {
		if strings.Count(all, fmt.Sprint(i)) != 1 {
			t.Errorf("line %d is in %q", i, all)
		}
	}
}

func TestPipesAreNotRotated(t *testing.T) {
	w, err := Open(os.DevNull, Rotation{MaxBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 3 {
		if _, err := w.Write([]byte("line\n")); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(os.DevNull); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none", "flows.log"), Rotation{}); err == nil {
		t.Error("a file in a folder that is not there")
	}
	if _, err := Open(filepath.Join(t.TempDir(), "f"), Rotation{MaxBytes: -1}); err == nil {
		t.Error("a negative size")
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.json")
	for i := range 2 {
		f, err := Open(path, Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(f, i)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "0\n1\n" {
		t.Errorf("file %q (%v), want both lines", b, err)
	}
	if _, err := Open(t.TempDir(), Rotation{}); err == nil {
		t.Error("a directory was opened")
	}
	f, err := Open("-", Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Stdout.Stat(); err != nil {
		t.Errorf("standard output was closed: %v", err)
	}
}
