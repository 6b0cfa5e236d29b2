package demo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/demo"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

func TestMain(m *testing.M) {
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := binary.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// screen is what the demo prints, to be read while it runs.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// waitFor waits until the text is on the screen.
func (s *screen) waitFor(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for ; !strings.Contains(s.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q never came:\n%s", text, s)
		}
	}
}

func TestShop(t *testing.T) {
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	var out screen
	ended := make(chan error, 1)
	go func() { ended <- demo.Run(ctx, &out, demo.Options{AgentBinary: program, Dir: dir, Watch: true}) }()
	out.waitFor(t, "Ctrl-C ends")
	t.Logf("\n%s", &out)
	for _, want := range []string{
		"IPv4", "IPv6", "policy says", `"verdict":"deny"`, "packets went to userspace", "median",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the picture lacks %q", want)
		}
	}

	bad := filepath.Join(dir, "bad.yaml")
	const policy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bad, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 1.2.3.4/99}}]}]}
`
	if err := os.WriteFile(bad, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "bad.yaml: document 1 (line 1): NetworkPolicy shop/bad: spec.ingress[0].from[0].ipBlock.cidr")
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}

	// Without its own policy the database has nothing but the denial of everything.
	if err := os.Remove(filepath.Join(dir, "networkpolicy-shop-database.yaml")); err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "IPv6: shop/backend -> shop/database 5432: now no\n")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "cells are as policy says") {
		t.Errorf("no verdict:\n%s", &out)
	}
}

func TestWithoutAgentsThePolicyIsBroken(t *testing.T) {
	var out screen
	err := demo.Run(t.Context(), &out, demo.Options{})
	if !errors.Is(err, demo.ErrDiffers) {
		t.Fatalf("got %v, want ErrDiffers\n%s", err, &out)
	}
	for _, want := range []string{
		"!yes",
		"DIFFERS: IPv4: shop/frontend-1 -> shop/database 5432: policy says no, but: reached shop/database",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the picture lacks %q:\n%s", want, &out)
		}
	}
}
