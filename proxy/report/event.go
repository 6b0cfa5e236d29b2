package report

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Actions and reasons of events, in which people and programs look for them.
const (
	actionCompile = "Compile"
	actionJudge   = "Judge"
	// EventPolicyInvalid is the reason of events about policies.
	EventPolicyInvalid = "PolicyInvalid"
	// EventConnectionDenied is the reason of events about pods.
	EventConnectionDenied = "ConnectionDenied"
)

// event says what could not be understood of a policy. What has been said already is not said again.
func (w *Writer) event(ctx context.Context, ref rule.Ref, o *outcome) error {
	about := regarding(ref, o.object)
	e := newEvent(about, w.cfg.Instance, EventPolicyInvalid, actionCompile, o.message)
	err := w.client.post(ctx, eventsIn(e.Namespace), e)
	switch {
	case err == nil:
		w.written.Add(1)
	case apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		// It is said, or the namespace is gone.
	default:
		return fmt.Errorf("event about %s: %w", ref, err)
	}
	return nil
}

// regarding is the object that a policy was made of: of two dialects, the namespace's annotation isolates.
func regarding(ref rule.Ref, o rule.Object) corev1.ObjectReference {
	if strings.Contains(ref.Name, "/") {
		return corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: ref.Namespace}
	}
	k := kinds[ref.Dialect]
	return corev1.ObjectReference{
		APIVersion: k.api, Kind: k.name, Namespace: ref.Namespace, Name: ref.Name, UID: types.UID(o.UID),
	}
}

// newEvent makes a warning. Its name is made of the object and the note, so that there is one of it.
func newEvent(about corev1.ObjectReference, instance, reason, action, note string) *eventsv1.Event {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s", about.Kind, about.APIVersion, about.UID, reason, note)
	const longest = 230 // of the 253 that names of objects may have
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events about objects without namespace are
	}
	return &eventsv1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%s.%016x", strings.TrimRight(about.Name[:min(len(about.Name), longest)], ".-"), h.Sum64()),
		},
		EventTime: metav1.NowMicro(), ReportingController: Controller, ReportingInstance: instance,
		Action: action, Reason: reason, Regarding: about, Note: note, Type: corev1.EventTypeWarning,
	}
}

func eventsIn(namespace string) string {
	return "/apis/events.k8s.io/v1/namespaces/" + namespace + "/events"
}
