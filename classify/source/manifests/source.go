package manifests

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Options configure a Source. The zero value works.
type Options struct {
	// Kinds are those that are understood; nil means Kinds().
	Kinds []Kind
	// Debounce is how long the directory must have been quiet before it is read: editors and copies make several
	// events. Default 5 ms; after a steady stream of 20 times as long it is read all the same.
	Debounce time.Duration
	// OnLoad hears of every load that changed what is in force or what is wrong, the first included. It is called by
	// one goroutine at a time.
	OnLoad func(State)
}

// State is what came of reading the directory: one load.
type State struct {
	// Number is the load whose objects are in force; it is the resource version that all kinds report. It grows when
	// the content in force changes, and begins at 1.
	Number uint64
	// Digest is that of the content in force, which is Digest of the directory when nothing is wrong with it.
	Digest string
	// Files and Objects count what is in force.
	Files, Objects int
	// Problems are what is wrong at present.
	Problems Problems
	// Ignored are the kinds that are not understood and that no earlier State has named.
	Ignored []schema.GroupVersionKind
	// Notes are what is to be said of objects that mean nothing, as far as no State has said it yet.
	Notes []Note
}

// ErrClosed is returned by lists and watches after Close.
var ErrClosed = errors.New("manifests: the source is closed")

const (
	// keepSnapshots is how many loads back a watch can begin. Between a list and the watch that follows lies no more
	// than one load; who comes later lists again.
	keepSnapshots = 4
	// keepDigests is how many loads back DigestOf knows.
	keepDigests = 4096
	// retryUnreadable is the time between looks at a directory that cannot be read and so cannot be watched.
	retryUnreadable = 500 * time.Millisecond
)

// Source serves a directory of manifests and follows its changes.
type Source struct {
	dir      string
	opts     Options
	registry *registry
	kinds    map[schema.GroupVersionResource]*Kind
	watcher  *fsnotify.Watcher

	ctx    context.Context
	cancel context.CancelFunc
	// running counts the goroutine that reads and those of watches.
	running sync.WaitGroup

	// These belong to the goroutine that reads.
	loader  *loader
	folders map[string]inode
	named   map[schema.GroupVersionKind]bool
	// noted has the notes of the last load.
	noted []Note

	mu        sync.Mutex
	last      State
	snapshots []*snapshot // the newest last
	digests   map[uint64]string
	// changed is closed, and made anew, when there is a new snapshot.
	changed chan struct{}
}

// snapshot is the content in force since one load. It is immutable, and shares what did not change with the one before.
type snapshot struct {
	number  uint64
	objects map[schema.GroupVersionKind]map[string]Object // by namespace/name
}

// Open reads the directory and begins to follow it. It fails if the directory cannot be read or watched; problems with
// files in it are no failure, see State.
func Open(dir string, opts Options) (*Source, error) {
	if opts.Debounce <= 0 {
		opts.Debounce = 5 * time.Millisecond
	}
	if opts.OnLoad == nil {
		opts.OnLoad = func(State) {}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("manifests: cannot watch files: %w", err)
	}
	s := &Source{
		dir: dir, opts: opts, registry: newRegistry(opts.Kinds), watcher: watcher,
		kinds: map[schema.GroupVersionResource]*Kind{}, named: map[schema.GroupVersionKind]bool{},
		digests: map[uint64]string{}, changed: make(chan struct{}),
	}
	for _, k := range s.registry.byKind {
		s.kinds[k.gvr()] = k
	}
	s.loader = newLoader(dir, s.registry)
	s.ctx, s.cancel = context.WithCancel(context.Background())

	out, err := s.read()
	if err == nil {
		err = out.tree.unreadable["."]
	}
	if err != nil {
		s.cancel()
		return nil, errors.Join(fmt.Errorf("manifests: %s: %w", dir, err), watcher.Close())
	}
	s.publish(out)
	s.running.Go(s.run)
	return s, nil
}

// Close ends all watches and waits for the source's goroutines.
func (s *Source) Close() error {
	// Under the lock, so that a watch that found the source open has been counted.
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.running.Wait()
	if err := s.watcher.Close(); err != nil {
		return fmt.Errorf("manifests: %w", err)
	}
	return nil
}

// State returns the outcome of the last load.
func (s *Source) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// DigestOf returns the digest of the content that a resource version of this source stands for; false if it is none of
// the last few thousand. A tool that wrote files compares it with Digest of the directory.
func (s *Source) DigestOf(resourceVersion string) (string, bool) {
	n, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.digests[n]
	return d, ok
}

// run reads the directory after each burst of events.
func (s *Source) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	var deadline time.Time // zero when no reading is due
	due := func(after time.Duration) {
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(20 * s.opts.Debounce)
		}
		timer.Reset(min(after, max(deadline.Sub(now), 0)))
	}
	for {
		select {
		case <-s.ctx.Done():
			return
		case e := <-s.watcher.Events:
			if relevant(e.Name) {
				due(s.opts.Debounce)
			}
		case err := <-s.watcher.Errors:
			// Events were lost (fsnotify.ErrEventOverflow), or a watch was: both are mended by reading again.
			if err != nil {
				due(s.opts.Debounce)
			}
		case <-timer.C:
			deadline = time.Time{}
			out, err := s.read()
			if err != nil {
				out.problems = append(out.problems, &Problem{File: ".", Detail: "cannot be watched: " + err.Error(), Err: err})
			}
			s.publish(out)
			if err != nil || len(out.tree.unreadable) > 0 && out.tree.unreadable["."] != nil {
				timer.Reset(retryUnreadable)
			}
		}
	}
}

// relevant tells whether an event can matter. Of hidden files only the link does that mounted ConfigMaps switch.
func relevant(path string) bool {
	name := filepath.Base(path)
	if hidden(name) {
		return name == "..data"
	}
	return name[len(name)-1] != '~'
}

// read loads the directory and sees to it that every folder is watched. A folder that was not watched before may have
// changed between the reading and the watching, so the directory is read again then.
func (s *Source) read() (*loaded, error) {
	for range 16 {
		out := s.loader.load()
		if maps.Equal(out.tree.folders, s.folders) {
			return out, nil
		}
		s.folders = nil
		for _, dir := range s.watcher.WatchList() {
			if _, ok := out.tree.folders[dir]; !ok {
				// It may have gone by itself in the meantime.
				_ = s.watcher.Remove(dir)
			}
		}
		for dir := range out.tree.folders {
			if err := s.watcher.Add(dir); err != nil && !isGone(err) {
				return out, fmt.Errorf("cannot watch %s: %w", dir, err)
			}
		}
		s.folders = out.tree.folders
	}
	// Folders come and go faster than they can be read; their events bring the reader back.
	return s.loader.load(), nil
}

// publish makes the outcome of a load known, if it is news.
func (s *Source) publish(out *loaded) {
	var ignored []schema.GroupVersionKind
	for _, gvk := range out.ignored {
		if !s.named[gvk] {
			s.named[gvk] = true
			ignored = append(ignored, gvk)
		}
	}
	notes := slices.DeleteFunc(slices.Clone(out.notes), func(n Note) bool { return slices.Contains(s.noted, n) })
	s.noted = out.notes
	s.mu.Lock()
	first := len(s.snapshots) == 0
	inForce := first || out.digest != s.last.Digest
	if !inForce && sameProblems(out.problems, s.last.Problems) {
		s.mu.Unlock()
		return
	}
	l := State{
		Number: s.last.Number, Digest: out.digest, Files: len(s.loader.force), Objects: s.last.Objects,
		Problems: out.problems, Ignored: ignored, Notes: notes,
	}
	if inForce {
		var previous *snapshot
		if !first {
			previous = s.snapshots[len(s.snapshots)-1]
		}
		l.Number++
		next, count := s.loader.snapshot(l.Number, previous)
		l.Objects = count
		s.snapshots = append(s.snapshots, next)
		if len(s.snapshots) > keepSnapshots {
			s.snapshots = slices.Delete(s.snapshots, 0, 1)
		}
		s.digests[l.Number] = l.Digest
		delete(s.digests, l.Number-keepDigests)
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.last = l
	s.mu.Unlock()
	s.opts.OnLoad(l)
}

// published is the form in which an object of a file is served.
type published struct{ from, object Object }

// snapshot indexes what is in force. Objects that say the same as before stay the same pointers, so that only real
// changes give events; the others get the number as their resource version.
func (l *loader) snapshot(number uint64, previous *snapshot) (*snapshot, int) {
	next := &snapshot{number: number, objects: map[schema.GroupVersionKind]map[string]Object{}}
	served := make(map[objectID]published, len(l.served))
	for _, c := range l.force {
		for _, o := range c.objects {
			id := o.objectID()
			p := l.served[id]
			if p.from != o.object {
				p = published{from: o.object, object: versioned(o.object, p.object, number)}
			}
			served[id] = p
			gvk := id.kind.GroupVersionKind
			if next.objects[gvk] == nil {
				next.objects[gvk] = make(map[string]Object, previous.count(gvk))
			}
			next.objects[gvk][keyOf(o.object)] = p.object
		}
	}
	l.served = served
	if previous != nil {
		for gvk, objects := range next.objects {
			if maps.Equal(objects, previous.objects[gvk]) {
				next.objects[gvk] = previous.objects[gvk]
			}
		}
	}
	return next, len(served)
}

func (s *snapshot) count(gvk schema.GroupVersionKind) int {
	if s == nil {
		return 0
	}
	return len(s.objects[gvk])
}

// versioned returns old if o says the same, and otherwise a copy of o with the resource version. What the manifest says
// of its resource version means nothing here.
func versioned(o, old Object, number uint64) Object {
	o = o.DeepCopyObject().(Object)
	if old != nil {
		o.SetResourceVersion(old.GetResourceVersion())
		if reflect.DeepEqual(o, old) {
			return old
		}
	}
	o.SetResourceVersion(strconv.FormatUint(number, 10))
	return o
}

func keyOf(o Object) string {
	if ns := o.GetNamespace(); ns != "" {
		return ns + "/" + o.GetName()
	}
	return o.GetName()
}

func sameProblems(a, b Problems) bool {
	return slices.EqualFunc(a, b, func(a, b *Problem) bool { return a.Error() == b.Error() })
}
