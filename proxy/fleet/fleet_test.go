package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

func TestMain(m *testing.M) {
	// See create: it ends by itself, later.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Stream).WaitTimeout"))
}

// serve answers as an agent does, on a unix socket.
func serve(t *testing.T, path string, hub *flowstream.Hub) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(flowstream.Path, flowstream.Handler(hub))
	answer := func(path string, v any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if err := json.NewEncoder(w).Encode(v); err != nil {
				t.Error(err)
			}
		})
	}
	answer("/status", agent.Status{Node: "node-a", Generation: 7})
	answer(traffic.Path, traffic.Graph{Edges: []traffic.Edge{{Port: "80/TCP", Verdict: traffic.Allow, Count: 2}}})
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(mux)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	return s
}

// TestFollowAgain: an agent that ends and comes back is followed again; no line is read twice, and none is lost.
func TestFollowAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node-a.sock")
	hub := flowstream.NewHub(0, 0)
	first := serve(t, path, hub)
	hub.Publish([]byte("one\n"))
	a := At("unix:" + path)
	defer a.Close()
	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan error, 10)
	lines := bufio.NewScanner(a.Follow(ctx, func(err error) { reports <- err }))
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("%q, want %q: %v", lines.Text(), want, lines.Err())
		}
	}
	expect("one")
	hub.Publish([]byte("two\n"))
	expect("two")
	first.CloseClientConnections()
	first.Close()
	if err := <-reports; !errors.Is(err, errEnded) || !strings.Contains(err.Error(), "node-a") {
		t.Errorf("reported %v", err)
	}
	hub.Publish([]byte("three\n"))
	second := serve(t, path, hub)
	defer second.Close()
	defer second.CloseClientConnections()
	expect("three")
	if err := <-reports; err != nil {
		t.Errorf("reported %v when it was back", err)
	}
	cancel()
	if lines.Scan() {
		t.Errorf("%q after the end", lines.Text())
	}
}

// TestWatch follows agents that come and go.
func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node-a.sock")
	hub := flowstream.NewHub(0, 0)
	s := serve(t, path, hub)
	defer s.Close()
	defer s.CloseClientConnections()
	hub.Publish([]byte("one\n"))
	var fail atomic.Bool
	flows := flowstream.NewHub(0, 0)
	w := &Watch{Publish: flows.Publish, Find: func(context.Context) ([]*Agent, error) {
		if fail.Load() {
			return nil, errors.New("no list")
		}
		return []*Agent{At("unix:" + path), At("127.0.0.1:1")}, nil
	}}
	sub := flows.Subscribe(flowstream.Request{Recent: -1, Follow: true}, nil)
	defer sub.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if line := string(<-sub.Lines()); line != "one\n" {
		t.Errorf("line %q", line)
	}
	agents := w.Agents(ctx)
	if len(agents) != 2 || !strings.HasPrefix(agents[0].NotReady, "cannot be asked: ") || agents[1].Node != "node-a" ||
		agents[1].Generation != 7 || agents[1].NotReady != "" {
		t.Errorf("agents %+v", agents)
	}
	if g := w.Traffic(ctx); len(g.Edges) != 1 || g.Edges[0].Count != 2 {
		t.Errorf("traffic %+v", g)
	}
	// What cannot be listed any more is still followed, and said.
	fail.Store(true)
	found, err := w.Find(ctx)
	w.take(ctx, nil, found, err)
	if agents := w.Agents(ctx); len(agents) != 3 || !strings.Contains(agents[2].NotReady, "no list") {
		t.Errorf("agents %+v", agents)
	}
}

// TestReplacedAgents: an update puts another pod in the place of an agent's, and nodes come; their flows are followed,
// and it is told.
func TestReplacedAgents(t *testing.T) {
	dir := t.TempDir()
	agentOf := func(node, pod string) *Agent {
		a := At("unix:" + filepath.Join(dir, pod))
		a.Name, a.Pod = node, "firstpacket/"+pod
		return a
	}
	hubs := map[string]*flowstream.Hub{}
	for _, pod := range []string{"old", "new", "other"} {
		hubs[pod] = flowstream.NewHub(0, 0)
		s := serve(t, filepath.Join(dir, pod), hubs[pod])
		defer s.Close()
		defer s.CloseClientConnections()
	}
	var updated atomic.Bool
	lines, told := make(chan string, 10), make(chan string, 10)
	w := &Watch{
		interval: time.Millisecond, Publish: func(line []byte) { lines <- string(line) },
		Report: func(a *Agent, err error) {
			if err == nil {
				told <- a.Pod
			}
		},
		Find: func(context.Context) ([]*Agent, error) {
			if updated.Load() {
				return []*Agent{agentOf("node-a", "new"), agentOf("node-b", "other")}, nil
			}
			return []*Agent{agentOf("node-a", "old")}, nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	hubs["old"].Publish([]byte("one\n"))
	if line := <-lines; line != "one\n" {
		t.Errorf("line %q", line)
	}
	hubs["new"].Publish([]byte("two\n")) // before anybody knows of it
	updated.Store(true)
	if line := <-lines; line != "two\n" {
		t.Errorf("line %q", line)
	}
	for _, want := range []string{"firstpacket/new", "firstpacket/other"} {
		if pod := <-told; pod != want {
			t.Errorf("told of %s, want %s", pod, want)
		}
	}
	hubs["other"].Publish([]byte("three\n"))
	if line := <-lines; line != "three\n" {
		t.Errorf("line %q", line)
	}
}

func TestAnswers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/status":
			http.Error(w, `{"kind":"Status","message":"pods is forbidden"}`, http.StatusForbidden)
		default:
			_, _ = w.Write([]byte("<html>")) // something else
		}
	}))
	defer s.Close()
	a := At(strings.TrimPrefix(s.URL, "http://"))
	defer a.Close()
	var v any
	if err := a.JSON(t.Context(), "/status", &v); !errors.Is(err, ErrAnswer) ||
		!strings.HasSuffix(err.Error(), "403 Forbidden: pods is forbidden") {
		t.Errorf("refused: %v", err)
	}
	if err := a.JSON(t.Context(), "/other", &v); !errors.Is(err, ErrAnswer) {
		t.Errorf("another server: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := At("unix:"+filepath.Join(t.TempDir(), "none")).JSON(ctx, "/status", &v); err == nil {
		t.Error("nobody answers")
	}
}

func TestHTTPPort(t *testing.T) {
	for args, want := range map[string]string{
		"agent --http-address=127.0.0.1:9191,unix:/run/firstpacket/agent.sock": "9191",
		"agent --http-address=unix:/run/a.sock,[$(HOST_IP)]:9100":              "9100",
		"agent --http-address=unix:/run/a.sock":                                defaultPort,
		"agent":                                                                defaultPort,
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Args: strings.Fields(args)}}}}
		if got := httpPort(pod); got != want {
			t.Errorf("%s: port %s, want %s", args, got, want)
		}
	}
}

func TestKnownLinesAreBounded(t *testing.T) {
	f := follower{seed: maphash.MakeSeed(), seen: map[uint64]struct{}{}}
	for i := range 3 * remembered {
		if line := []byte{byte(i), byte(i >> 8)}; f.known(line) || !f.known(line) {
			t.Fatalf("line %d", i)
		}
	}
	if len(f.seen) != remembered || len(slices.Compact(slices.Sorted(slices.Values(f.order)))) != remembered {
		t.Errorf("%d lines are remembered", len(f.seen))
	}
}
