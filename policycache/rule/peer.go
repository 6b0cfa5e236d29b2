package rule

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/domain"
)

// PeerKind says what a Peer selects by.
type PeerKind uint8

const (
	// Pods selects pods by namespace and labels.
	Pods PeerKind = iota + 1
	// Addresses selects by address, whoever owns it: pods, nodes and the world outside alike.
	Addresses
	// Nodes selects the addresses of nodes by the nodes' labels.
	Nodes
	// Names selects the addresses that the subject has learned under a domain name.
	Names
)

// Peer selects who may be on the other side of a connection.
type Peer struct {
	Kind PeerKind
	// Namespace is the only namespace whose pods match, unless Namespaces is set. Kind Pods only.
	Namespace string
	// Namespaces, if not nil, selects the pods' namespaces by label. Kind Pods only.
	Namespaces *Selector
	// Labels selects by the labels of the pod or node.
	Labels Selector
	// Block is set for Kind Addresses.
	Block *Block
	// Name is set for Kind Names.
	Name domain.Pattern
}

// Matches tells whether a pod or node with this identity is selected. It is always false for Kind Addresses, which
// asks for the address instead, see Block.Contains, and for Kind Names, which asks for what the subject was told.
func (p *Peer) Matches(id *identity.Identity) bool {
	switch p.Kind {
	case Pods:
		return id.Kind == identity.Pod && inNamespace(p.Namespace, p.Namespaces, id) && p.Labels.Matches(id.Labels)
	case Nodes:
		return id.Kind == identity.Node && p.Labels.Matches(id.Labels)
	}
	return false
}

// String prints the peer in words, for explanations.
func (p *Peer) String() string {
	switch p.Kind {
	case Pods:
		return "pods " + p.Labels.String() + " in " + namespaceWords(p.Namespace, p.Namespaces)
	case Nodes:
		return "nodes " + p.Labels.String()
	case Addresses:
		return "addresses " + p.Block.String()
	case Names:
		return "names " + p.Name.String()
	}
	return fmt.Sprintf("peer(%d)", p.Kind)
}

// Matches tells whether a pod with this identity is a subject.
func (s *Subject) Matches(id *identity.Identity) bool {
	return id.Kind == identity.Pod && inNamespace(s.Namespace, s.Namespaces, id) && s.Pods.Matches(id.Labels)
}

// String prints the subject in words, for explanations.
func (s *Subject) String() string {
	return "pods " + s.Pods.String() + " in " + namespaceWords(s.Namespace, s.Namespaces)
}

func inNamespace(name string, sel *Selector, id *identity.Identity) bool {
	if sel != nil {
		return sel.Matches(id.NamespaceLabels)
	}
	return id.Namespace == name
}

func namespaceWords(name string, sel *Selector) string {
	if sel != nil {
		return "namespaces " + sel.String()
	}
	return "namespace " + name
}

// Block is a range of addresses without some parts of it.
type Block struct {
	// CIDR and Except are masked: no bits are set beyond the prefix length.
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Contains tells whether the address lies in the block and in none of the exceptions. An address of the other family
// never does; an IPv4-mapped IPv6 address is an IPv6 address.
func (b *Block) Contains(a netip.Addr) bool {
	if !b.CIDR.Contains(a) {
		return false
	}
	for _, e := range b.Except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// String prints the block; blocks that print alike contain the same addresses.
func (b *Block) String() string {
	if len(b.Except) == 0 {
		return b.CIDR.String()
	}
	var s strings.Builder
	s.WriteString(b.CIDR.String())
	s.WriteString(" except ")
	for i, e := range b.Except {
		if i > 0 {
			s.WriteByte(' ')
		}
		s.WriteString(e.String())
	}
	return s.String()
}
