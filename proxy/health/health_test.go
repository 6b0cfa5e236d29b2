package health

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errWaiting = errors.New("waiting for pods")

func config(address string) Config {
	return Config{
		Address: address, Ready: func() error { return errWaiting },
		Status: func() any { return map[string]string{"node": "a"} }, Metrics: prometheus.NewRegistry(),
	}
}

// serve runs a server for the test, and checks that it ends well.
func serve(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSeveralAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	cfg := config("127.0.0.1:0,unix:" + path)
	ready := errWaiting
	cfg.Ready = func() error { return ready }
	s := serve(t, cfg)
	for _, address := range []string{s.Addr().String(), "unix:" + path} {
		if err := Probe(t.Context(), address, "/healthz"); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		err := Probe(t.Context(), address, "/readyz")
		if !errors.Is(err, ErrNotOK) || !strings.Contains(err.Error(), errWaiting.Error()) {
			t.Errorf("%s: %v, want the reason", address, err)
		}
	}
	ready = nil
	if err := Probe(t.Context(), "unix:"+path, "/readyz"); err != nil {
		t.Error(err)
	}
}

func TestSocketOfADeadProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := Probe(t.Context(), "unix:"+path, "/healthz"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("probe of a dead agent: %v", err)
	}
	serve(t, config("unix:"+path))
	if err := Probe(t.Context(), "unix:"+path, "/healthz"); err != nil {
		t.Error(err)
	}
}

func TestTakenAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	other := serve(t, config("127.0.0.1:0,unix:"+path))
	free := filepath.Join(t.TempDir(), "free.sock")
	for _, address := range []string{"unix:" + free + "," + other.Addr().String(), "unix:" + free + ",unix:" + path} {
		if _, err := Listen(t.Context(), config(address)); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v", address, err)
		}
		if _, err := os.Stat(free); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the free address stays bound: %v", address, err)
		}
	}
	if err := Probe(t.Context(), "unix:"+path, "/healthz"); err != nil {
		t.Errorf("the socket was taken from who listens: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	plain, profiled := config(""), config("")
	profiled.Profiling = true
	for name, c := range map[string]struct {
		cfg          Config
		method, path string
		status       int
		body         string
	}{
		"alive":         {plain, http.MethodGet, "/healthz", http.StatusOK, "ok"},
		"not ready":     {plain, http.MethodGet, "/readyz", http.StatusServiceUnavailable, errWaiting.Error()},
		"status":        {plain, http.MethodGet, "/status", http.StatusOK, `"node": "a"`},
		"metrics":       {plain, http.MethodGet, "/metrics", http.StatusOK, ""},
		"no profiling":  {plain, http.MethodGet, "/debug/pprof/cmdline", http.StatusNotFound, ""},
		"profiling":     {profiled, http.MethodGet, "/debug/pprof/cmdline", http.StatusOK, ""},
		"nothing taken": {plain, http.MethodPost, "/status", http.StatusMethodNotAllowed, ""},
	} {
		w := httptest.NewRecorder()
		handler(c.cfg).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, http.NoBody))
		body, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		if w.Code != c.status || !strings.Contains(string(body), c.body) {
			t.Errorf("%s: %d %s", name, w.Code, body)
		}
	}
}
