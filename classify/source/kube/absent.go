package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"github.com/firstpacket/firstpacket/classify/source"
)

// definitions is the resource of CustomResourceDefinitions.
var definitions = schema.GroupVersionResource{
	Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
}

const (
	// firstProbe is how long after news of a definition its API is first tried; the pause doubles with each attempt
	// up to lastProbe. Servers take some time from a definition to an API, and a definition may lack the version.
	firstProbe = 50 * time.Millisecond
	lastProbe  = time.Minute
	// rewatch lies between a watch that ended, as all watches do in time, and the next, or between two attempts where
	// definitions may not be watched. It is jittered up to its double.
	rewatch = 30 * time.Second
)

var _ source.Waiter = (*Source)(nil)

// WaitServed implements source.Waiter. It watches the one definition that the kind can come from, metadata only: as
// long as there is none, no request is made. That needs the permission to watch that CustomResourceDefinition; without
// it, the kind itself is tried about every minute.
func (s *Source) WaitServed(ctx context.Context, k source.Kind) error {
	client, err := metadata.NewForConfig(s.config)
	if err != nil {
		return fmt.Errorf("kube: client for definitions: %w", err)
	}
	a := &absence{client: client, kind: k.GVR}
	for {
		if a.follow(ctx) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait.Jitter(rewatch, 1)):
		}
		if a.served(ctx) {
			return nil
		}
	}
}

// absence is one kind that is waited for.
type absence struct {
	client metadata.Interface
	kind   schema.GroupVersionResource
}

// follow watches the definition and returns true once the kind is served, false when the watch cannot be had any more.
func (a *absence) follow(ctx context.Context) bool {
	name := a.kind.Resource + "." + a.kind.Group
	w, err := a.client.Resource(definitions).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String(),
	})
	if err != nil {
		return false
	}
	defer w.Stop()
	var due <-chan time.Time // nil while there is no definition
	var pause time.Duration
	for {
		select {
		case <-ctx.Done():
			return false
		case e, ok := <-w.ResultChan():
			switch {
			case !ok || e.Type == watch.Error:
				return false
			case e.Type == watch.Deleted:
				due = nil
			default:
				pause = firstProbe
				due = time.After(pause)
			}
		case <-due:
			if a.served(ctx) {
				return true
			}
			pause = min(2*pause, lastProbe)
			due = time.After(pause)
		}
	}
}

// served tells whether the server has any other answer for the kind than that there is no such thing. A refusal is one:
// who lists will be told of it.
func (a *absence) served(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := a.client.Resource(a.kind).List(ctx, metav1.ListOptions{Limit: 1})
	var status apierrors.APIStatus
	return err == nil || errors.As(err, &status) && !apierrors.IsNotFound(err)
}
