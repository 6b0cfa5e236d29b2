package flowstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// start serves until the test ends.
func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "run", "flows.sock")
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func dial(t *testing.T, s *Server, req Request) io.ReadCloser {
	t.Helper()
	c, err := Dial(t.Context(), s.cfg.Path, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// await waits for a count that another goroutine brings about.
func await(t *testing.T, s *Server, what string, ok func(Stats) bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(s.Stats()); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v", what, s.Stats())
		}
		time.Sleep(time.Millisecond)
	}
}

func publish(s *Server, from, to int) {
	for i := from; i <= to; i++ {
		s.Publish(fmt.Appendf(nil, "line %d\n", i))
	}
}

func TestRecent(t *testing.T) {
	s := start(t, Config{Recent: 3})
	for _, c := range []struct {
		published, recent int
		want              string
	}{
		{0, -1, ""},
		{2, -1, "line 1\nline 2\n"},
		{2, 1, "line 2\n"},
		{2, 0, ""},
		{5, -1, "line 3\nline 4\nline 5\n"},
		{5, 2, "line 4\nline 5\n"},
		{5, 9, "line 3\nline 4\nline 5\n"},
	} {
		s.hub.mu.Lock()
		s.hub.recent, s.hub.next = nil, 0
		s.hub.mu.Unlock()
		publish(s, 1, c.published)
		got, err := io.ReadAll(dial(t, s, Request{Recent: c.recent}))
		if err != nil || string(got) != c.want {
			t.Errorf("%d published, recent %d: %q, %v; want %q", c.published, c.recent, got, err, c.want)
		}
	}
}

func TestFollowMissesNothing(t *testing.T) {
	s := start(t, Config{})
	publish(s, 1, 2)
	a, b := dial(t, s, Request{Recent: -1, Follow: true}), dial(t, s, Request{Follow: true})
	await(t, s, "readers", func(st Stats) bool { return st.Served == 2 })
	publish(s, 3, 500)
	var got [2][]string
	for i, c := range []io.Reader{a, b} {
		in := bufio.NewScanner(c)
		for len(got[i]) == 0 || got[i][len(got[i])-1] != "line 500" {
			if !in.Scan() {
				t.Fatalf("reader %d ends after %d lines: %v", i, len(got[i]), in.Err())
			}
			got[i] = append(got[i], in.Text())
		}
	}
	var want []string
	for i := 1; i <= 500; i++ {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	if d := cmp.Diff([2][]string{want, want[2:]}, got); d != "" {
		t.Error(d)
	}
	a.Close()
	await(t, s, "readers that went", func(st Stats) bool { return st.Readers == 1 })
}

func TestSlowReadersAreDropped(t *testing.T) {
	s := start(t, Config{Backlog: 10})
	slow := dial(t, s, Request{Follow: true})
	await(t, s, "reader", func(st Stats) bool { return st.Served == 1 })
	line := []byte(strings.Repeat("x", 8191) + "\n")
	published := 0
	for ; s.Stats().Dropped == 0; published++ { // Publish returns, whatever the reader does
		if published == 1_000_000 {
			t.Fatal("a reader that reads nothing keeps up")
		}
		s.Publish(line)
	}
	await(t, s, "no reader", func(st Stats) bool { return st.Readers == 0 })
	got, err := io.ReadAll(slow)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	if len(got) >= published*len(line) {
		t.Errorf("%d bytes of %d lines came through all the same", len(got), published)
	}
	if st := s.Stats(); st.Dropped != 1 {
		t.Errorf("%+v", st)
	}
}

func TestTooManyReaders(t *testing.T) {
	s := start(t, Config{Readers: 1})
	dial(t, s, Request{Follow: true})
	await(t, s, "reader", func(st Stats) bool { return st.Readers == 1 })
	second := dial(t, s, Request{Recent: -1})
	if got, err := io.ReadAll(second); len(got) > 0 {
		t.Errorf("turned away with %q, %v", got, err)
	}
	if st := s.Stats(); st.Refused != 1 || st.Readers != 1 {
		t.Errorf("%+v", st)
	}
}

func TestNewAgentTakesThePathOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.sock")
	old, err := Listen(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{Path: path})
	publish(s, 1, 1)
	old.Close() // must leave the other's socket alone
	if got, err := io.ReadAll(dial(t, s, Request{Recent: -1})); err != nil || string(got) != "line 1\n" {
		t.Errorf("%q, %v", got, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestEndTakesTheSocketAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.sock")
	s, err := Listen(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	c := dial(t, s, Request{Follow: true})
	await(t, s, "reader", func(st Stats) bool { return st.Served == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), path, Request{}); !errors.Is(err, ErrNoAgent) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

func TestListenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"no path":      {},
		"negative":     {Path: file, Recent: -1},
		"no socket":    {Path: file},
		"not a folder": {Path: filepath.Join(file, "x")},
	} {
		if s, err := Listen(cfg); err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
		}
	}
	if raw, err := os.ReadFile(file); err != nil || string(raw) != "precious" {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestNonsenseIsNoRequest(t *testing.T) {
	s := start(t, Config{})
	publish(s, 1, 1)
	c, err := Dial(t.Context(), s.cfg.Path, Request{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	for _, text := range []string{"nonsense\n", strings.Repeat("x", 2*maxRequest)} {
		conn := rawDial(t, s, text)
		if got, _ := io.ReadAll(conn); len(got) > 0 {
			t.Errorf("%.20q is answered with %q", text, got)
		}
	}
}

func rawDial(t *testing.T, s *Server, text string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestNobodyIsAdmittedAfterTheEnd: a reader that was accepted in the moment of the end would keep Serve waiting.
func TestNobodyIsAdmittedAfterTheEnd(t *testing.T) {
	s, err := Listen(Config{Path: filepath.Join(t.TempDir(), "flows.sock")})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if s.admit(near) {
		t.Error("admitted")
	}
}
