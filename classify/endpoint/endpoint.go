// Package endpoint knows which address belongs to which pod or node.
package endpoint

import (
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// Endpoint is the owner of one or more addresses: a running pod with its own network, or a node. It is immutable;
// a change of the object makes a new Endpoint.
type Endpoint struct {
	// Identity is what selectors see. Its Kind tells pods from nodes.
	Identity identity.Handle
	// Kind repeats the identity's kind, so that the packet path need not follow the handle.
	Kind identity.Kind
	// Namespace is empty for nodes.
	Namespace string
	Name      string
	// Node is the name of the node that the pod runs on, or of the node itself.
	Node string
	// Addrs are all addresses of the owner, both families, sorted.
	Addrs []netip.Addr
	// Ports are the named container ports, sorted; nil for none. Equal lists of different pods share memory
	// and are the same pointer.
	Ports *Ports
}

// Ports is an interned list of a pod's named ports; equal lists are the same pointer.
type Ports = cluster.Ports

// NamedPort is one entry of Ports.
type NamedPort = cluster.NamedPort

// Change says that the owner of an address is another one than before.
type Change struct {
	Addr netip.Addr
	// Old and New are nil where the address had, or has, no owner.
	Old, New *Endpoint
}

// equal compares by value. Equal identities and equal port lists are the same handle and pointer.
func (e *Endpoint) equal(o *Endpoint) bool {
	if e == o {
		return true
	}
	return e != nil && o != nil &&
		e.Identity == o.Identity && e.Kind == o.Kind && e.Ports == o.Ports &&
		e.Namespace == o.Namespace && e.Name == o.Name && e.Node == o.Node && slices.Equal(e.Addrs, o.Addrs)
}
