package source

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Config configures a Queue. The zero value works.
type Config struct {
	// OnError hears of every failure: kinds that cannot be listed or watched, and objects that a Transform refused
	// (*ObjectError). Failed lists and watches are tried again with growing pauses of at most a minute, so it is
	// not called more often than that for each kind. It is called by several goroutines and should return quickly.
	OnError func(kind Health, err error)
	// Logger hears what client-go has to say. The zero Logger discards it: errors come to OnError anyway.
	Logger klog.Logger
}

// Queue follows kinds and queues their changes, the newest state of each object only: it never holds more changes than
// there are objects. Its methods may be called by any goroutine; Next by one at a time.
type Queue struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	// running counts reflectors and their calls of ListerWatchers.
	running sync.WaitGroup
	// wake has room for one token: something below may have become true.
	wake chan struct{}

	mu     sync.Mutex
	stores []*store
	// started is set when Next first found every kind synced.
	started bool
	pending []Change
	// moved is true when Versions has changed since the last batch.
	moved bool
	// settled is closed, and made anew, when a kind has synced or is known to be absent.
	settled chan struct{}
}

// New returns a queue whose reflectors live until ctx ends or Close is called.
func New(ctx context.Context, cfg Config) *Queue {
	if cfg.OnError == nil {
		cfg.OnError = func(Health, error) {}
	}
	q := &Queue{cfg: cfg, wake: make(chan struct{}, 1), settled: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(klog.NewContext(ctx, cfg.Logger))
	return q
}

// Add begins to follow a kind of src. Kinds may be added at any time; the first Next waits for all that were added
// before it. The whole content of a kind that is added later comes in one batch.
func (q *Queue) Add(src Source, k Kind) error {
	if err := k.validate(); err != nil {
		return err
	}
	lw, err := src.ListerWatcher(k)
	if err != nil {
		return fmt.Errorf("source: kind %s: %w", k.Name, err)
	}
	s := &store{q: q, kind: k, objects: map[string]uint64{}, failing: map[string]struct{}{}}

	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctx.Err() != nil {
		return ErrClosed
	}
	for _, other := range q.stores {
		if other.kind.Name == k.Name {
			return fmt.Errorf("source: kind %s is followed already", k.Name)
		}
	}
	q.stores = append(q.stores, s)
	reflector := cache.NewReflectorWithOptions(observe(src, lw, s), k.Example, s, cache.ReflectorOptions{
		Logger: &q.cfg.Logger, Name: "firstpacket", TypeDescription: k.Name,
	})
	q.running.Go(func() { reflector.RunWithContext(q.ctx) })
	return nil
}

// Next waits for changes and returns all there are. The first batch comes when every kind has synced and holds the
// whole content, so that a half-known cluster is never acted on. A batch may have no changes and only newer versions.
func (q *Queue) Next(ctx context.Context) (Batch, error) {
	for {
		if b, ok := q.take(); ok {
			return b, nil
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return Batch{}, context.Cause(ctx)
		case <-q.ctx.Done():
			return Batch{}, ErrClosed
		}
	}
}

func (q *Queue) take() (Batch, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctx.Err() != nil {
		return Batch{}, false
	}
	if !q.started {
		if len(q.stores) == 0 || len(q.unsettled()) > 0 {
			return Batch{}, false
		}
		q.started, q.moved = true, true
	}
	if len(q.pending) == 0 && !q.moved {
		return Batch{}, false
	}
	b := Batch{Changes: q.pending, Versions: make(map[string]string, len(q.stores))}
	q.pending, q.moved = nil, false
	for _, s := range q.stores {
		s.place = nil
		if s.synced {
			b.Versions[s.kind.Name] = s.version
		}
	}
	return b, true
}

// WaitSynced returns when every kind that was added has synced. If ctx ends before, it returns a *NotSyncedError that
// names the kinds that have not, and their last errors.
func (q *Queue) WaitSynced(ctx context.Context) error {
	for {
		q.mu.Lock()
		missing, settled := q.unsettled(), q.settled
		q.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return &NotSyncedError{Kinds: missing}
		case <-q.ctx.Done():
			return ErrClosed
		}
	}
}

// Health returns the health of all kinds, in the order in which they were added.
func (q *Queue) Health() []Health {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := make([]Health, len(q.stores))
	for i, s := range q.stores {
		all[i] = s.health()
	}
	return all
}

// Close stops all reflectors and waits for them. What has not been taken is dropped.
func (q *Queue) Close() {
	q.cancel()
	// No Add may begin a reflector after this: it would see the ended context under the lock.
	q.mu.Lock()
	q.pending = nil
	q.mu.Unlock()
	q.running.Wait()
}

// unsettled lists the kinds that have neither synced nor are absent by right. Called with mu held.
func (q *Queue) unsettled() []Health {
	var missing []Health
	for _, s := range q.stores {
		if !s.synced && !s.absent {
			missing = append(missing, s.health())
		}
	}
	return missing
}

// enqueue queues the newest state of an object in the place of an older one, if that is still queued. Called with mu
// held.
func (q *Queue) enqueue(s *store, key string, object any) {
	if i, ok := s.place[key]; ok {
		q.pending[i].Object = object
		return
	}
	if s.place == nil {
		s.place = map[string]int{}
	}
	s.place[key] = len(q.pending)
	q.pending = append(q.pending, Change{Kind: s.kind.Name, Key: key, Object: object})
	q.signal()
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// settle tells those who wait that a kind has synced or is known to be absent. Called with mu held.
func (q *Queue) settle() {
	close(q.settled)
	q.settled = make(chan struct{})
	q.signal()
}

func (s *store) health() Health {
	return Health{
		Kind: s.kind.Name, Synced: s.synced, Absent: s.absent, Objects: len(s.objects), Failing: len(s.failing),
		Failures: s.failures, Version: s.version, LastEvent: s.lastEvent, Err: s.err, ErrSince: s.errSince,
	}
}
