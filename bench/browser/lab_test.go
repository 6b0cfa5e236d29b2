package browser

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is the firstpacket that is tested: the one that FIRSTPACKET_BINARY names, or that make build made.
func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("FIRSTPACKET_BINARY")
	if path == "" {
		path = filepath.Join("..", "..", "bin", "firstpacket")
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run make build", err)
	}
	return path
}

// start runs the program until the test ends, and returns the first line of its output that has the text.
func start(t *testing.T, text string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), program(t), args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found, done := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(done)
		defer close(found)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) {
				found <- lines.Text()
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", args[0], err, said.String())
		}
	})
	select {
	case line, ok := <-found:
		if !ok {
			t.Fatalf("%s ended before it said %q", args[0], text)
		}
		return line
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s did not say %q", args[0], text)
	}
	return ""
}
