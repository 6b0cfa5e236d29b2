package manifests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"sync"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/firstpacket/firstpacket/classify/source"
)

var _ source.Source = (*Source)(nil)

// ListerWatcher implements source.Source.
func (s *Source) ListerWatcher(k source.Kind) (cache.ListerWatcher, error) {
	kind, ok := s.kinds[k.GVR]
	if !ok {
		return nil, fmt.Errorf("manifests: %s are not understood", k.GVR)
	}
	return &listerWatcher{s, kind}, nil
}

// listerWatcher is one kind of a Source.
type listerWatcher struct {
	s    *Source
	kind *Kind
}

var (
	_ cache.ListerWatcher            = (*listerWatcher)(nil)
	_ cache.ListerWatcherWithContext = (*listerWatcher)(nil)
)

// IsWatchListSemanticsUnSupported tells reflectors to list first and then watch.
func (*listerWatcher) IsWatchListSemanticsUnSupported() bool { return true }

// List implements cache.ListerWatcher. The objects are shared and must not be changed.
func (lw *listerWatcher) List(metav1.ListOptions) (runtime.Object, error) {
	if lw.s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	snap, _ := lw.s.current()
	objects := snap.objects[lw.kind.GroupVersionKind]
	list := &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: snap.version()}}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		list.Items = append(list.Items, runtime.RawExtension{Object: objects[key]})
	}
	return list, nil
}

// ListWithContext implements cache.ListerWatcherWithContext.
func (lw *listerWatcher) ListWithContext(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return lw.List(options)
}

// Watch implements cache.ListerWatcher.
func (lw *listerWatcher) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return lw.WatchWithContext(context.Background(), options)
}

// WatchWithContext implements cache.ListerWatcherWithContext. A resource version that is not one of the last few gives
// the error that makes reflectors list again (410 Gone).
func (lw *listerWatcher) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	s := lw.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	i := slices.IndexFunc(s.snapshots, func(p *snapshot) bool { return p.version() == options.ResourceVersion })
	if i < 0 {
		return nil, apierrors.NewResourceExpired("manifests: resource version " + options.ResourceVersion + " is not kept")
	}
	w := &watcher{s: s, kind: lw.kind, at: s.snapshots[i], results: make(chan watch.Event), stop: make(chan struct{})}
	s.running.Go(func() { w.run(ctx) })
	return w, nil
}

// watcher sends what changes in one kind. It goes from snapshot to snapshot; while nobody receives, loads that follow
// each other become one step.
type watcher struct {
	s       *Source
	kind    *Kind
	at      *snapshot
	results chan watch.Event
	stop    chan struct{}
	once    sync.Once
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.once.Do(func() { close(w.stop) }) }

func (w *watcher) run(ctx context.Context) {
	defer close(w.results)
	for {
		next, changed := w.s.current()
		if next != w.at {
			for _, e := range w.events(next) {
				select {
				case w.results <- e:
				case <-w.stop:
					return
				case <-ctx.Done():
					return
				case <-w.s.ctx.Done():
					return
				}
			}
			w.at = next
		}
		select {
		case <-changed:
		case <-w.stop:
			return
		case <-ctx.Done():
			return
		case <-w.s.ctx.Done():
			return
		}
	}
}

// events are the steps from one snapshot to a later one: deletions first, then the rest by key, then a bookmark. Every
// event carries the version from which the step begins, and only the bookmark the one to which it leads: a reflector
// reports the last version it has seen, and must not report one of which it has only a part.
func (w *watcher) events(next *snapshot) []watch.Event {
	var events []watch.Event
	send := func(t watch.EventType, o Object) {
		o = o.DeepCopyObject().(Object)
		o.SetResourceVersion(w.at.version())
		events = append(events, watch.Event{Type: t, Object: o})
	}
	before, after := w.at.objects[w.kind.GroupVersionKind], next.objects[w.kind.GroupVersionKind]
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if after[key] == nil {
			send(watch.Deleted, before[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(after)) {
		switch old := before[key]; {
		case old == nil:
			send(watch.Added, after[key])
		case old != after[key]:
			send(watch.Modified, after[key])
		}
	}
	bookmark := w.kind.New()
	bookmark.GetObjectKind().SetGroupVersionKind(w.kind.GroupVersionKind)
	bookmark.SetResourceVersion(next.version())
	return append(events, watch.Event{Type: watch.Bookmark, Object: bookmark})
}

// current returns the newest snapshot and a channel that is closed when there is a newer one.
func (s *Source) current() (*snapshot, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots[len(s.snapshots)-1], s.changed
}

func (s *snapshot) version() string { return strconv.FormatUint(s.number, 10) }

// isGone tells whether a folder vanished before it could be watched; its parent has the event.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }
