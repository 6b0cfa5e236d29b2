// Package source brings the objects of a cluster in, in compact form, as one ordered queue of changes.
//
// Whatever knows the objects (an API server, a directory of manifests) is a Source: it gives a client-go ListerWatcher
// for each Kind. A Queue runs a client-go reflector for each kind over it, so that listing, watching, resuming after a
// gap and backing off are the same code for all sources. Objects are turned into their compact form as soon as they
// are decoded; no store of full objects exists.
package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// Source gives access to the objects of one cluster.
type Source interface {
	// ListerWatcher lists and watches the kind in all namespaces.
	ListerWatcher(Kind) (cache.ListerWatcher, error)
}

// Waiter is a Source that knows when a kind comes to be served. Of others, optional kinds are tried again with growing
// pauses.
type Waiter interface {
	// WaitServed is called after a list was answered with NotFound and returns nil when it is worth another try, or
	// an error when ctx has ended or it cannot tell.
	WaitServed(ctx context.Context, k Kind) error
}

// Kind is one kind of objects that a Queue follows.
type Kind struct {
	// Name names the kind in changes, metrics and messages, as manifests write it: "Pod".
	Name string
	// GVR is the resource to list and watch.
	GVR schema.GroupVersionResource
	// Namespaced is true for kinds whose objects lie in namespaces.
	Namespaced bool
	// Example is a value of the Go type that the source decodes objects into; only its type is used.
	Example runtime.Object
	// AddToScheme registers that type, for sources that decode.
	AddToScheme func(*runtime.Scheme) error
	// Optional kinds may be missing from the cluster (custom resources). Until their API is served they are no
	// reason to wait and no error; when it comes to be served, they are found: see Waiter.
	Optional bool
	// Transform makes the form that is queued. It must neither change nor keep the object, and give an immutable
	// value. If that has a method Key() string that returns the object's key, its memory is shared. An object whose
	// Transform fails is reported, and its last good form stays in force.
	//
	// Transforms of one kind are called by one goroutine at a time.
	Transform func(runtime.Object) (any, error)
}

func (k *Kind) validate() error {
	switch {
	case k.Name == "":
		return errors.New("source: a kind without name")
	case k.Example == nil:
		return fmt.Errorf("source: kind %s has no example object", k.Name)
	case k.Transform == nil:
		return fmt.Errorf("source: kind %s has no transform", k.Name)
	}
	return nil
}

// Change says that an object is another one than before.
type Change struct {
	// Kind is the Name of the kind.
	Kind string
	// Key is namespace/name, or the name alone for cluster-scoped kinds.
	Key string
	// Object is what the kind's Transform made of the object; nil when the object is gone.
	Object any
}

// Batch is what has changed since the batch before.
type Batch struct {
	// Changes holds each object at most once, in the order in which the objects first changed.
	Changes []Change
	// Versions has, for every kind that has synced, the resource version whose content is wholly in this batch and
	// those before it.
	Versions map[string]string
}

// Health is how one kind is doing.
type Health struct {
	Kind string
	// Synced is true once the whole content of the kind has been queued.
	Synced bool
	// Absent is true for an optional kind that the source does not serve.
	Absent bool
	// Objects is the number of objects that are in force; Failing of these, or in addition to these, have a newer
	// state that their Transform refused.
	Objects, Failing int
	// Failures counts refusals by Transform since the start.
	Failures uint64
	// Version is the resource version that has been queued.
	Version string
	// LastEvent is when the source was last heard of: a list, a change or a bookmark. Zero for never.
	LastEvent time.Time
	// Err is the error of the last attempt to list or watch, nil if that succeeded, and ErrSince the time of the
	// first failure in a row. What was known before stays in force meanwhile.
	Err      error
	ErrSince time.Time
}

// ErrClosed is returned by Next after Close, or after the end of the context the queue was made with.
var ErrClosed = errors.New("source: the queue is closed")

// ObjectError is the refusal of one object by its kind's Transform.
type ObjectError struct {
	Kind, Key string
	Err       error
}

func (e *ObjectError) Error() string { return fmt.Sprintf("%s %s: %v", e.Kind, e.Key, e.Err) }

// Unwrap returns the error of the Transform.
func (e *ObjectError) Unwrap() error { return e.Err }

// NotSyncedError names the kinds whose content has not been seen whole.
type NotSyncedError struct{ Kinds []Health }

func (e *NotSyncedError) Error() string {
	kinds := make([]string, len(e.Kinds))
	for i, h := range e.Kinds {
		kinds[i] = h.Kind
		if h.Err != nil {
			kinds[i] += " (" + h.Err.Error() + ")"
		}
	}
	return "source: not synced: " + strings.Join(kinds, "; ")
}

// Unwrap returns the errors of the kinds that have one.
func (e *NotSyncedError) Unwrap() []error {
	var errs []error
	for _, h := range e.Kinds {
		if h.Err != nil {
			errs = append(errs, h.Err)
		}
	}
	return errs
}
