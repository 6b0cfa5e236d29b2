package manifests

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/firstpacket/firstpacket/classify/source"
)

// follower is an agent's view of a directory: a Source, a Queue over it, and what the batches add up to.
type follower struct {
	t      *testing.T
	dir    string
	src    *Source
	queue  *source.Queue
	states chan State
	known  map[string]any
	// told lists the changes since the last await, in order.
	told []string
}

func policies() source.Kind {
	return source.Kind{
		Name: "NetworkPolicy", GVR: networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), Namespaced: true,
		Example: &networkingv1.NetworkPolicy{},
		Transform: source.Typed(func(np *networkingv1.NetworkPolicy) *string {
			s := np.Name
			return &s
		}),
	}
}

func follow(t *testing.T, dir string) *follower {
	t.Helper()
	f := &follower{t: t, dir: dir, states: make(chan State, 1000), known: map[string]any{}}
	src, err := Open(dir, Options{OnLoad: func(s State) { f.states <- s }})
	if err != nil {
		t.Fatal(err)
	}
	f.src = src
	f.queue = source.New(t.Context(), source.Config{
		OnError: func(kind source.Health, err error) { t.Errorf("%s: %v", kind.Kind, err) },
	})
	t.Cleanup(func() {
		f.queue.Close()
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, k := range []source.Kind{source.Pods(), source.Nodes(), source.Namespaces(), policies()} {
		if err := f.queue.Add(src, k); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// await takes batches until every kind has the content with the directory's digest, as a tool that wrote the files
// does.
func (f *follower) await() {
	f.t.Helper()
	want, err := Digest(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	f.awaitDigest(want)
}

func (f *follower) awaitDigest(want string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	f.told = nil
	for {
		b, err := f.queue.Next(ctx)
		if err != nil {
			f.t.Fatalf("%v; state %+v, problems %v", err, f.src.State(), f.src.State().Problems.Err())
		}
		for _, c := range b.Changes {
			key := c.Kind + " " + c.Key
			if c.Object == nil {
				delete(f.known, key)
				f.told = append(f.told, "-"+key)
			} else {
				f.known[key] = c.Object
				f.told = append(f.told, "+"+key)
			}
		}
		applied := len(b.Versions) == 4
		for _, v := range b.Versions {
			d, ok := f.src.DigestOf(v)
			applied = applied && ok && d == want
		}
		if applied {
			return
		}
	}
}

// expect compares what is known with a list of "Kind key".
func (f *follower) expect(keys ...string) {
	f.t.Helper()
	var got []string
	for k := range f.known {
		got = append(got, k)
	}
	slices.Sort(got)
	slices.Sort(keys)
	if !slices.Equal(got, keys) {
		f.t.Fatalf("known: %q, want %q", got, keys)
	}
}

func (f *follower) expectTold(keys ...string) {
	f.t.Helper()
	slices.Sort(f.told)
	slices.Sort(keys)
	if !slices.Equal(f.told, keys) {
		f.t.Fatalf("told: %q, want %q", f.told, keys)
	}
}

// awaitState takes loads until one fits.
func (f *follower) awaitState(fits func(State) bool) State {
	f.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case s := <-f.states:
			if fits(s) {
				return s
			}
		case <-timeout:
			f.t.Fatalf("no such load; state %+v", f.src.State())
		}
	}
}

func withProblem(text string) func(State) bool {
	return func(s State) bool { return s.Problems != nil && strings.Contains(s.Problems.Err().Error(), text) }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
