// Package identity interns what policy can see of an endpoint: its namespace and both label sets.
//
// Policy decisions are made between identities, not pods: a deployment of a thousand replicas is one identity, and
// whatever is computed for it is computed once.
package identity

import (
	"unique"

	"github.com/firstpacket/firstpacket/classify/label"
)

// Kind says what an identity describes.
type Kind uint8

const (
	// Pod is a pod with an address of its own.
	Pod Kind = iota + 1
	// Node is a host address; host-network pods are host addresses too.
	Node
)

func (k Kind) String() string {
	switch k {
	case Pod:
		return "pod"
	case Node:
		return "node"
	}
	return "external"
}

// Identity is everything about an endpoint that a selector can match. It is comparable.
type Identity struct {
	Kind Kind
	// Namespace is the pod's namespace name; empty for nodes.
	Namespace string
	// NamespaceLabels are the namespace's labels, kubernetes.io/metadata.name included; empty for nodes.
	NamespaceLabels label.Set
	// Labels are the pod's, or the node's, own labels.
	Labels label.Set
}

// Handle is an interned Identity: one word, compared with ==, freed with its last user. The zero Handle belongs to
// addresses that are no endpoint of the cluster (external ones).
type Handle struct{ h unique.Handle[Identity] }

// Intern returns the handle of id.
func Intern(id Identity) Handle { return Handle{unique.Make(id)} }

// IsZero tells whether the handle is that of an external address.
func (h Handle) IsZero() bool { return h == Handle{} }

// Identity returns the interned value; the zero Handle gives the zero Identity.
func (h Handle) Identity() Identity {
	if h.IsZero() {
		return Identity{}
	}
	return h.h.Value()
}
