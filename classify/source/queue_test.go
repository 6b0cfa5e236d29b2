package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/firstpacket/firstpacket/classify/cluster"
)

// fake serves one kind: what list returns, and what is sent on the channel of watches.
type fake struct {
	streaming bool
	mu        sync.Mutex
	list      func() (runtime.Object, error)
	events    chan watch.Event
}

func (f *fake) ListerWatcher(Kind) (cache.ListerWatcher, error) { return f, nil }

func (f *fake) IsWatchListSemanticsUnSupported() bool { return !f.streaming }

func (f *fake) List(metav1.ListOptions) (runtime.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list()
}

func (f *fake) Watch(metav1.ListOptions) (watch.Interface, error) {
	w := watch.NewFake()
	go func() {
		for {
			select {
			case e, ok := <-f.events:
				if !ok {
					w.Stop()
					return
				}
				w.Action(e.Type, e.Object)
			case <-time.After(10 * time.Millisecond):
				if w.IsStopped() {
					return
				}
			}
		}
	}()
	return w, nil
}

func serve(version string, objects ...runtime.Object) *fake {
	f := &fake{events: make(chan watch.Event)}
	f.list = func() (runtime.Object, error) { return list(version, objects...), nil }
	return f
}

func list(version string, objects ...runtime.Object) *metav1.List {
	l := &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: version}}
	for _, o := range objects {
		l.Items = append(l.Items, runtime.RawExtension{Object: o})
	}
	return l
}

func pod(name, version string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, ResourceVersion: version}}
}

func node(name, version string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: version}}
}

func newQueue(t *testing.T, cfg Config) *Queue {
	t.Helper()
	q := New(t.Context(), cfg)
	t.Cleanup(q.Close)
	return q
}

func add(t *testing.T, q *Queue, src Source, k Kind) {
	t.Helper()
	if err := q.Add(src, k); err != nil {
		t.Fatal(err)
	}
}

func next(t *testing.T, q *Queue) Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := q.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// nextWith returns the changes up to the batch that has the version of the kind.
func nextWith(t *testing.T, q *Queue, kind, version string) string {
	t.Helper()
	var all []Change
	for {
		b := next(t, q)
		all = append(all, b.Changes...)
		if b.Versions[kind] == version {
			return printed(all)
		}
	}
}

func printed(changes []Change) string {
	var out []string
	for _, c := range changes {
		sign := "+"
		if c.Object == nil {
			sign = "-"
		}
		out = append(out, sign+c.Key)
	}
	return strings.Join(out, " ")
}

// nothing fails if a batch comes.
func nothing(t *testing.T, q *Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if b, err := q.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %+v, %v", b, err)
	}
}

func TestFirstBatchWaitsForAllKinds(t *testing.T) {
	q := newQueue(t, Config{})
	release := make(chan struct{})
	nodes := serve("7", node("n1", "3"))
	listed := nodes.list
	nodes.list = func() (runtime.Object, error) { <-release; return listed() }
	add(t, q, serve("5", pod("a", "1"), pod("b", "2")), Pods())
	add(t, q, nodes, Nodes())

	for deadline := time.Now().Add(10 * time.Second); !q.Health()[0].Synced; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", q.Health())
		}
	}
	nothing(t, q)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var missing *NotSyncedError
	err := q.WaitSynced(ctx)
	if !errors.As(err, &missing) || len(missing.Kinds) != 1 || missing.Kinds[0].Kind != KindNode {
		t.Fatalf("wait: %v", err)
	}
	close(release)
	if err := q.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := next(t, q)
	if got := printed(b.Changes); got != "+shop/a +shop/b +n1" {
		t.Errorf("changes: %s", got)
	}
	if got := fmt.Sprint(b.Versions); got != "map[Node:7 Pod:5]" {
		t.Errorf("versions: %s", got)
	}
	if p, ok := b.Changes[0].Object.(*cluster.Pod); !ok || p.Name != "a" {
		t.Errorf("object: %#v", b.Changes[0].Object)
	}
	nothing(t, q)
}

func TestFirstBatchOfAnEmptyCluster(t *testing.T) {
	q := newQueue(t, Config{})
	add(t, q, serve("1"), Pods())
	if b := next(t, q); len(b.Changes) != 0 || b.Versions[KindPod] != "1" {
		t.Errorf("%+v", b)
	}
}

func TestWatchEvents(t *testing.T) {
	q := newQueue(t, Config{})
	f := serve("5", pod("a", "1"))
	add(t, q, f, Pods())
	next(t, q)
	f.events <- watch.Event{Type: watch.Added, Object: pod("b", "6")}
	f.events <- watch.Event{Type: watch.Modified, Object: pod("b", "7")}
	f.events <- watch.Event{Type: watch.Deleted, Object: pod("a", "8")}
	if got := nextWith(t, q, KindPod, "8"); got != "+shop/b -shop/a" && got != "+shop/b +shop/b -shop/a" {
		t.Error(got)
	}
	f.events <- watch.Event{Type: watch.Bookmark, Object: pod("", "20")}
	if got := nextWith(t, q, KindPod, "20"); got != "" {
		t.Error(got)
	}
	h := q.Health()[0]
	if h.Objects != 1 || h.Version != "20" || !h.Synced || h.Err != nil || h.LastEvent.IsZero() {
		t.Errorf("health: %+v", h)
	}
}

func TestStreamedListIsTransformedAndRefusalsSurviveIt(t *testing.T) {
	var mu sync.Mutex
	var refused []string
	q := newQueue(t, Config{OnError: func(_ Health, err error) {
		mu.Lock()
		defer mu.Unlock()
		refused = append(refused, err.Error())
	}})
	f := serve("1")
	f.streaming = true
	kind := Pods()
	whole := kind.Transform
	kind.Transform = func(o runtime.Object) (any, error) {
		if o.(*corev1.Pod).Name == "bad" {
			return nil, errors.New("no")
		}
		return whole(o)
	}
	add(t, q, f, kind)
	end := pod("", "9")
	end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	for _, e := range []watch.Event{
		{Type: watch.Added, Object: pod("a", "1")}, {Type: watch.Added, Object: pod("bad", "2")},
		{Type: watch.Added, Object: pod("gone", "3")}, {Type: watch.Deleted, Object: pod("gone", "4")},
		{Type: watch.Bookmark, Object: end},
	} {
		f.events <- e
	}
	b := next(t, q)
	if got := printed(b.Changes); got != "+shop/a" || b.Versions[KindPod] != "9" {
		t.Errorf("%s %v", got, b.Versions)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(refused, []string{"Pod shop/bad: no"}) {
		t.Errorf("refused: %q", refused)
	}
	if h := q.Health()[0]; h.Failing != 1 || h.Failures != 1 || h.Objects != 1 {
		t.Errorf("health: %+v", h)
	}
}

func TestOptionalKind(t *testing.T) {
	q := newQueue(t, Config{OnError: func(kind Health, err error) { t.Errorf("%s: %v", kind.Kind, err) }})
	absent := serve("")
	absent.list = func() (runtime.Object, error) {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, "")
	}
	kind := Nodes()
	kind.Optional = true
	add(t, q, serve("5", pod("a", "1")), Pods())
	add(t, q, absent, kind)
	b := next(t, q)
	if _, ok := b.Versions[KindNode]; ok || printed(b.Changes) != "+shop/a" {
		t.Fatalf("%+v", b)
	}
	if h := q.Health()[1]; !h.Absent || h.Synced {
		t.Fatalf("health: %+v", h)
	}
	absent.mu.Lock()
	absent.list = func() (runtime.Object, error) { return list("9", node("n1", "1"), node("n2", "2")), nil }
	absent.mu.Unlock()
	if got := nextWith(t, q, KindNode, "9"); got != "+n1 +n2" {
		t.Error(got)
	}
}

func TestKindAddedWhileRunningComesInOneBatch(t *testing.T) {
	q := newQueue(t, Config{})
	add(t, q, serve("5", pod("a", "1")), Pods())
	next(t, q)
	var nodes []runtime.Object
	for i := range 100 {
		nodes = append(nodes, node(fmt.Sprint("n", i), "1"))
	}
	add(t, q, serve("7", nodes...), Nodes())
	if b := next(t, q); len(b.Changes) != 100 || b.Versions[KindNode] != "7" || b.Versions[KindPod] != "5" {
		t.Errorf("%d changes, %v", len(b.Changes), b.Versions)
	}
	if err := q.Add(serve("1"), Pods()); err == nil {
		t.Error("a kind was added twice")
	}
	if err := q.Add(serve("1"), Kind{Name: "Other"}); err == nil {
		t.Error("an incomplete kind was added")
	}
}

func TestListErrorsAreReported(t *testing.T) {
	failed := make(chan error, 10)
	q := newQueue(t, Config{OnError: func(kind Health, err error) {
		if kind.Kind != KindPod || kind.Synced || kind.Err == nil {
			t.Errorf("reported of %+v", kind)
		}
		failed <- err
	}})
	f := serve("5")
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no role"))
	f.list = func() (runtime.Object, error) { return nil, forbidden }
	add(t, q, f, Pods())
	if err := <-failed; !apierrors.IsForbidden(err) {
		t.Errorf("reported: %v", err)
	}
	h := q.Health()[0]
	if !apierrors.IsForbidden(h.Err) || h.ErrSince.IsZero() || h.Synced {
		t.Errorf("health: %+v", h)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.WaitSynced(ctx); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "Pod (list pods:") {
		t.Errorf("wait: %v", err)
	}
	f.mu.Lock()
	f.list = func() (runtime.Object, error) { return list("5"), nil }
	f.mu.Unlock()
	if err := q.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := q.Health()[0]; h.Err != nil || !h.ErrSince.IsZero() {
		t.Errorf("health: %+v", h)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	q := New(context.Background(), Config{})
	f := serve("5")
	blocked, release := make(chan struct{}), make(chan struct{})
	f.list = func() (runtime.Object, error) { close(blocked); <-release; return list("5"), nil }
	add(t, q, f, Pods())
	<-blocked
	closed := make(chan struct{})
	go func() { q.Close(); close(closed) }()
	<-q.ctx.Done()
	select {
	case <-closed:
		t.Error("Close did not wait for the list that was running")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	<-closed
	if _, err := q.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := q.Add(serve("1"), Nodes()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := q.WaitSynced(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	q.Close()
}
