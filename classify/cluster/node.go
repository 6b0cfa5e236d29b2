package cluster

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/classify/label"
)

// Node is what classification keeps of a core/v1 Node.
type Node struct {
	Name   string
	Labels label.Set
	// PodCIDRs are spec.podCIDRs (spec.podCIDR where that is empty), masked and sorted.
	PodCIDRs []netip.Prefix
	// Addrs are the status.addresses of the types InternalIP and ExternalIP that are addresses, sorted.
	Addrs []netip.Addr
	// Created is metadata.creationTimestamp in nanoseconds since 1970; 0 when the object has none.
	Created int64
}

// NewNode makes the compact form of n, which is not kept.
func NewNode(n *corev1.Node) *Node {
	cidrs := n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		cidrs = []string{n.Spec.PodCIDR}
	}
	var addrs []string
	for i := range n.Status.Addresses {
		a := &n.Status.Addresses[i]
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			addrs = append(addrs, a.Address)
		}
	}
	return &Node{
		Name:     interned(n.Name),
		Labels:   label.Of(n.Labels),
		PodCIDRs: prefixSet(cidrs),
		Addrs:    addrSet(addrs),
		Created:  created(n.CreationTimestamp),
	}
}

// Key is the node's name.
func (n *Node) Key() string { return n.Name }
