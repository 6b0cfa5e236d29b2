package source

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/firstpacket/firstpacket/classify/cluster"
)

// Names of the kinds that this package defines.
const (
	KindPod       = "Pod"
	KindNode      = "Node"
	KindNamespace = "Namespace"
)

// Pods is the kind of core/v1 Pods, queued as *cluster.Pod.
func Pods() Kind {
	return Kind{
		Name: KindPod, GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespaced: true,
		Example: &corev1.Pod{}, AddToScheme: corev1.AddToScheme, Transform: Typed(cluster.NewPod),
	}
}

// Nodes is the kind of core/v1 Nodes, queued as *cluster.Node.
func Nodes() Kind {
	return Kind{
		Name: KindNode, GVR: corev1.SchemeGroupVersion.WithResource("nodes"),
		Example: &corev1.Node{}, AddToScheme: corev1.AddToScheme, Transform: Typed(cluster.NewNode),
	}
}

// Namespaces is the kind of core/v1 Namespaces, queued as *cluster.Namespace.
func Namespaces() Kind {
	return Kind{
		Name: KindNamespace, GVR: corev1.SchemeGroupVersion.WithResource("namespaces"),
		Example: &corev1.Namespace{}, AddToScheme: corev1.AddToScheme, Transform: Typed(cluster.NewNamespace),
	}
}

// Typed makes a Kind's Transform of a function over one Go type that cannot fail.
func Typed[T runtime.Object, C any](compact func(T) *C) func(runtime.Object) (any, error) {
	return func(o runtime.Object) (any, error) {
		t, ok := o.(T)
		if !ok {
			return nil, fmt.Errorf("got a %T, not a %T", o, t)
		}
		return compact(t), nil
	}
}
