package source

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
)

// observed stands between a reflector and its ListerWatcher: a reflector tells its errors to a log only, and leaves a
// running list behind when it is stopped.
type observed struct {
	lw    cache.ListerWatcherWithContext
	inner cache.ListerWatcher
	// waiter is nil if the source is none.
	waiter Waiter
	s      *store
}

func observe(src Source, lw cache.ListerWatcher, s *store) *observed {
	waiter, _ := src.(Waiter)
	return &observed{lw: cache.ToListerWatcherWithContext(lw), inner: lw, waiter: waiter, s: s}
}

// ListWithContext implements cache.ListerWatcherWithContext.
func (o *observed) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	if !o.s.begin() {
		return nil, ErrClosed
	}
	defer o.s.q.running.Done()
	list, err := o.lw.ListWithContext(ctx, options)
	o.s.outcome(ctx, "list", err)
	// While an optional kind is absent, its reflector stays here, where it costs nothing.
	for o.waiter != nil && apierrors.IsNotFound(err) && o.s.isAbsent() {
		if o.waiter.WaitServed(ctx, o.s.kind) != nil {
			break
		}
		list, err = o.lw.ListWithContext(ctx, options)
		o.s.outcome(ctx, "list", err)
	}
	return list, err
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (o *observed) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	w, err := o.lw.WatchWithContext(ctx, options)
	if options.SendInitialEvents != nil && *options.SendInitialEvents && err != nil {
		// A streamed list that the server cannot give is followed by an ordinary one, whose outcome counts.
		return w, err
	}
	o.s.outcome(ctx, "watch", err)
	return w, err
}

// List implements cache.ListerWatcher.
func (o *observed) List(options metav1.ListOptions) (runtime.Object, error) {
	return o.ListWithContext(context.Background(), options)
}

// Watch implements cache.ListerWatcher.
func (o *observed) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return o.WatchWithContext(context.Background(), options)
}

// IsWatchListSemanticsUnSupported passes on what the ListerWatcher says of itself; the reflector asks by this name.
func (o *observed) IsWatchListSemanticsUnSupported() bool {
	return watchlist.DoesClientNotSupportWatchListSemantics(o.inner)
}

// begin counts a list among what Close waits for. A reflector that is stopped does not wait for the list it runs, so
// the count may have reached zero before; then nothing may begin.
func (s *store) begin() bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.ctx.Err() != nil {
		return false
	}
	s.q.running.Add(1)
	return true
}

func (s *store) isAbsent() bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.absent
}

// outcome notes how an attempt to list or watch ended.
func (s *store) outcome(ctx context.Context, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	s.q.mu.Lock()
	switch {
	case err == nil:
		s.err, s.errSince = nil, time.Time{}
	case s.kind.Optional && len(s.objects)+len(s.failing) == 0 && apierrors.IsNotFound(err):
		err, s.err, s.errSince = nil, nil, time.Time{}
		if !s.absent {
			s.absent = true
			s.q.settle()
		}
	default:
		err = fmt.Errorf("%s %s: %w", verb, s.kind.GVR.Resource, err)
		if s.err == nil {
			s.errSince = time.Now()
		}
		s.err = err
	}
	health := s.health()
	s.q.mu.Unlock()
	if err != nil {
		s.q.cfg.OnError(health, err)
	}
}
