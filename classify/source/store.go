package source

import (
	"fmt"
	"hash/maphash"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// store is where the reflector of one kind puts objects. It keeps their keys only, to know what vanished while nobody
// watched; the objects themselves go to the queue.
type store struct {
	q    *Queue
	kind Kind

	// The rest is guarded by q.mu.

	// objects has the keys of the objects in force, and stamps of the states they are in.
	objects map[string]uint64
	// failing has the keys of the objects whose last state the Transform refused.
	failing  map[string]struct{}
	failures uint64
	// place is the place in q.pending of the objects that are queued.
	place map[string]int

	synced, absent bool
	version        string
	lastEvent      time.Time
	err            error
	errSince       time.Time
}

var (
	_ cache.TransformingStore      = (*store)(nil)
	_ cache.ResourceVersionUpdater = (*store)(nil)
)

// item is an object on its way to the queue. The reflector's temporary store of a streamed list holds these, so that no
// full object outlives its decoding.
type item struct {
	key    string
	stamp  uint64
	object any
	// err is why there is no object. It travels along instead of being returned: the reflector drops objects that
	// cannot be transformed, and they would then look deleted.
	err error
}

var stampSeed = maphash.MakeSeed()

// compact makes an item of what the reflector hands over; items pass unchanged, as a streamed list has been here
// before.
func (s *store) compact(obj any) *item {
	if it, ok := obj.(*item); ok {
		return it
	}
	it := &item{}
	m, err := meta.Accessor(obj)
	if err != nil {
		it.err = fmt.Errorf("%T has no metadata: %w", obj, err)
		return it
	}
	it.key = cache.MetaObjectToName(m).String()
	if rv := m.GetResourceVersion(); rv != "" {
		it.stamp = maphash.String(stampSeed, string(m.GetUID())+"/"+rv)
	}
	object, ok := obj.(runtime.Object)
	if !ok {
		it.err = fmt.Errorf("%T is no API object", obj)
		return it
	}
	it.object, it.err = s.kind.Transform(object)
	if it.err == nil && it.object == nil {
		it.err = fmt.Errorf("the transform of kind %s gave nothing", s.kind.Name)
	}
	if k, ok := it.object.(interface{ Key() string }); ok && it.err == nil {
		if shared := k.Key(); shared == it.key {
			it.key = shared
		}
	}
	return it
}

// Transformer makes the reflector transform objects of a streamed list one by one (cache.TransformingStore).
func (s *store) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.compact(obj), nil }
}

// Add takes a new object from the watch.
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update takes a changed object from the watch.
func (s *store) Update(obj any) error {
	it := s.compact(obj)
	s.q.mu.Lock()
	s.lastEvent = time.Now()
	refused := s.put(it)
	s.q.mu.Unlock()
	s.report(refused)
	return nil
}

// Delete takes a deleted object from the watch.
func (s *store) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.lastEvent = time.Now()
	s.remove(key)
	return nil
}

// Replace takes the whole content of the kind: at first, and after a gap in the watch. Objects that are in force and
// not in the list were deleted in the gap.
func (s *store) Replace(list []any, resourceVersion string) error {
	items := make([]*item, len(list))
	listed := make(map[string]struct{}, len(list))
	for i, obj := range list {
		items[i] = s.compact(obj)
		listed[items[i].key] = struct{}{}
	}

	var refused []*ObjectError
	s.q.mu.Lock()
	for key := range s.objects {
		if _, ok := listed[key]; !ok {
			s.remove(key)
		}
	}
	for key := range s.failing {
		if _, ok := listed[key]; !ok {
			delete(s.failing, key)
		}
	}
	for _, it := range items {
		if stamp, ok := s.objects[it.key]; ok && stamp == it.stamp && stamp != 0 && it.err == nil {
			delete(s.failing, it.key)
			continue
		}
		if e := s.put(it); e != nil {
			refused = append(refused, e)
		}
	}
	s.lastEvent = time.Now()
	s.version = resourceVersion
	s.q.moved = true
	s.absent = false
	if !s.synced {
		s.synced = true
		s.q.settle()
	}
	s.q.signal()
	s.q.mu.Unlock()
	s.report(refused...)
	return nil
}

// Resync does nothing: nothing here needs to be seen again.
func (s *store) Resync() error { return nil }

// UpdateResourceVersion notes how far the watch has come. The reflector calls it after each event has been put in and
// for bookmarks (cache.ResourceVersionUpdater).
func (s *store) UpdateResourceVersion(resourceVersion string) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.lastEvent = time.Now()
	if s.version != resourceVersion {
		s.version = resourceVersion
		s.q.moved = true
		s.q.signal()
	}
}

// put queues the item, or returns why not. Called with q.mu held.
func (s *store) put(it *item) *ObjectError {
	if it.err != nil {
		s.failures++
		s.failing[it.key] = struct{}{}
		return &ObjectError{Kind: s.kind.Name, Key: it.key, Err: it.err}
	}
	delete(s.failing, it.key)
	s.objects[it.key] = it.stamp
	s.q.enqueue(s, it.key, it.object)
	return nil
}

// remove queues the deletion of an object. Objects that never were in force are not worth telling. Called with q.mu
// held.
func (s *store) remove(key string) {
	delete(s.failing, key)
	if _, ok := s.objects[key]; !ok {
		return
	}
	delete(s.objects, key)
	s.q.enqueue(s, key, nil)
}

func (s *store) report(refused ...*ObjectError) {
	for _, e := range refused {
		if e == nil {
			continue
		}
		s.q.mu.Lock()
		health := s.health()
		s.q.mu.Unlock()
		s.q.cfg.OnError(health, e)
	}
}
