// Package endpoint knows which address belongs to which pod or node.
package endpoint

import (
	"net/netip"
	"slices"

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

// Ports is an interned list of a pod's named ports: of all its containers, native sidecars included.
type Ports struct{ List []NamedPort }

// NamedPort is one entry of a container's ports that has a name.
type NamedPort struct {
	Name string
	// Proto is the IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
	Proto uint8
	Port  uint16
}

// Lookup returns the ports that carry name for the protocol; containers of one pod may use a name more than once.
func (p *Ports) Lookup(name string, proto uint8) []uint16 {
	if p == nil {
		return nil
	}
	var found []uint16
	for _, np := range p.List {
		if np.Name == name && np.Proto == proto && !slices.Contains(found, np.Port) {
			found = append(found, np.Port)
		}
	}
	return found
}

// Change says that the owner of an address is another one than before.
type Change struct {
	Addr netip.Addr
	// Old and New are nil where the address had, or has, no owner.
	Old, New *Endpoint
}
