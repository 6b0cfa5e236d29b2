package clusterflags

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/policycache/explain"
)

// TestLive follows the cluster of a server until it is told to end.
func TestLive(t *testing.T) {
	f := parse(t, "--kubeconfig", server(t, ""))
	f.WithServices = true
	l := f.Live("test")
	if _, _, err := l.World(); !errors.Is(err, errWaiting) {
		t.Errorf("before anything is known: %v", err)
	}
	run(t, l)
	c, err := l.Asked(t.Context())
	if err != nil || len(c.Services) != 1 {
		t.Fatalf("%v, %d services", err, len(c.Services))
	}
	a, err := explain.Ask(c, explain.Question{From: "shop/web", To: "svc/shop/db", Port: "80"})
	if err != nil || a.Verdict.String() != "deny" {
		t.Errorf("%v %v", a.Verdict, err)
	}
	w, version, err := l.World()
	if err != nil || version == 0 || len(w.Policies) != 1 {
		t.Errorf("version %d, %d policies, %v", version, len(w.Policies), err)
	}
}

// TestLiveIsForbidden: whoever asks is told why there is no answer.
func TestLiveIsForbidden(t *testing.T) {
	l := parse(t, "--kubeconfig", server(t, "/api/v1/pods"), "--timeout", "1s").Live("test")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Asked(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody follows: %v", err)
	}
	run(t, l)
	if _, err := l.Asked(t.Context()); err == nil || !strings.Contains(err.Error(), "check that you may list and watch") {
		t.Error(err)
	}
}

// run follows until the test ends.
func run(t *testing.T, l *Live) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}
