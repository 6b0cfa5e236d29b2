package cluster

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/classify/label"
)

// Annotations of namespaces that predate the NetworkPolicy object and switch isolation on for a whole namespace.
const (
	// AnnotationIsolation is the Kubernetes 1.2 form; "on" isolates.
	AnnotationIsolation = "net.alpha.kubernetes.io/network-isolation"
	// AnnotationNetworkPolicy is the Kubernetes 1.3 form, a JSON document.
	AnnotationNetworkPolicy = "net.beta.kubernetes.io/network-policy"
)

// Namespace is what classification keeps of a core/v1 Namespace.
type Namespace struct {
	Name string
	// Labels always contain kubernetes.io/metadata.name, as the API server sets it.
	Labels label.Set
	// Isolation and NetworkPolicy are the values of the two legacy annotations; empty where absent.
	Isolation     string
	NetworkPolicy string
}

// NewNamespace makes the compact form of ns, which is not kept.
func NewNamespace(ns *corev1.Namespace) *Namespace {
	labels := label.Of(ns.Labels)
	if v, ok := ns.Labels[corev1.LabelMetadataName]; !ok || v != ns.Name {
		labels = labels.With(corev1.LabelMetadataName, ns.Name)
	}
	return &Namespace{
		Name:          interned(ns.Name),
		Labels:        labels,
		Isolation:     strings.Clone(ns.Annotations[AnnotationIsolation]),
		NetworkPolicy: strings.Clone(ns.Annotations[AnnotationNetworkPolicy]),
	}
}

// UnknownNamespace is what is known of a namespace before its object has been seen: its name.
func UnknownNamespace(name string) *Namespace {
	return &Namespace{Name: interned(name), Labels: label.Set{}.With(corev1.LabelMetadataName, name)}
}

// Key is the namespace's name.
func (n *Namespace) Key() string { return n.Name }
