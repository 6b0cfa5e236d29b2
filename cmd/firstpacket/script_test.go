package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"firstpacket":      main,
		pluginName:         main,
		pluginCompleteName: main,
	})
}

// TestScripts runs the scripts of testdata, each in a folder of its own that has the cluster of testdata/shop. With
// UPDATE=1 in the environment, it writes their expectations anew.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"), RequireExplicitExec: true, RequireUniqueNames: true,
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			env.Setenv("KUBECONFIG", filepath.Join(env.WorkDir, "none"))
			env.Setenv("HOME", env.WorkDir)
			return os.CopyFS(filepath.Join(env.WorkDir, "shop"), os.DirFS(filepath.Join("testdata", "shop")))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": expectStatus,
			"agent":  startAgent,
			"stream": startStream,

			"serveflows": serveFlows,
		},
	})
}

// expectStatus runs a program and wants the exit status: status 3 firstpacket explain ... Its output is that of exec.
func expectStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE PROGRAM ARG ...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// startAgent answers as an agent of node n1 with the manifests of a folder would, at $AGENT: agent FOLDER
// [WHY-NOT-READY].
func startAgent(ts *testscript.TestScript, _ bool, args []string) {
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), ts.MkAbs(args[0]))
	ts.Check(problems.Err())
	changes, err := state.Of(objects)
	ts.Check(err)
	snapshot, _ := state.New("n1").Apply(changes)
	status := agent.Status{
		Node: "n1", Version: "v1", Features: "queue", Generation: 7, Settled: 7, AppliedAt: time.Now(), Policies: 1,
		Problems: map[string][]string{"NetworkPolicy/shop/db": {"spec.ingress[0]: is wrong"}},
		Sources:  []agent.SourceStatus{{Kind: "Pod", Objects: 4, Synced: true, LastEvent: time.Now()}},
	}
	if len(args) > 1 {
		status.NotReady = args[1]
	}
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "firstpacket_verdicts_total"},
		[]string{"verdict", "direction", "reason"})
	counter.WithLabelValues("deny", "ingress", "no-rule-matches").Add(12)
	registry.MustRegister(counter)
	mux := http.NewServeMux()
	mux.Handle(explain.Path, explain.Handler(func() *engine.Snapshot { return snapshot }))
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(status); err != nil {
			panic(err)
		}
	})
	srv := httptest.NewServer(mux)
	ts.Defer(srv.Close)
	ts.Setenv("AGENT", strings.TrimPrefix(srv.URL, "http://"))

	// The same on a unix socket, whose path is short.
	dir, err := os.MkdirTemp("", "agent")
	ts.Check(err)
	ts.Defer(func() { ts.Check(os.RemoveAll(dir)) })
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", filepath.Join(dir, "s"))
	ts.Check(err)
	local := httptest.NewUnstartedServer(mux)
	local.Listener.Close()
	local.Listener = l
	local.Start()
	ts.Defer(local.Close)
	ts.Setenv("AGENT_SOCKET", "unix:"+filepath.Join(dir, "s"))
}

// startStream streams the lines of a file at the socket $SOCKET: stream FILE.
func startStream(ts *testscript.TestScript, _ bool, args []string) {
	// Paths of sockets are short; those of test folders need not be.
	dir, err := os.MkdirTemp("", "flows")
	ts.Check(err)
	path := filepath.Join(dir, "s")
	s, err := flowstream.Listen(flowstream.Config{Path: path})
	ts.Check(err)
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		s.Publish([]byte(line))
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-done)
		ts.Check(os.RemoveAll(dir))
	})
	ts.Setenv("SOCKET", path)
}

// serveFlows serves the lines of a file as an agent does, at $NAME: serveflows NAME FILE.
func serveFlows(ts *testscript.TestScript, _ bool, args []string) {
	hub := flowstream.NewHub(0, 0)
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		hub.Publish([]byte(line))
	}
	mux := http.NewServeMux()
	mux.Handle(flowstream.Path, flowstream.Handler(hub))
	srv := httptest.NewServer(mux)
	ts.Defer(srv.Close)
	ts.Setenv(args[0], strings.TrimPrefix(srv.URL, "http://"))
}
