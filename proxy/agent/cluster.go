package agent

import (
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// kindNetworkPolicy is the name of the kind in changes, metrics and /status.
const kindNetworkPolicy = "NetworkPolicy"

// kinds are the objects that the agent follows.
func kinds() []source.Kind {
	return []source.Kind{source.Namespaces(), source.Nodes(), source.Pods(), networkPolicies()}
}

// networkPolicies is the kind of networking.k8s.io/v1 NetworkPolicies, queued as *rule.Policy.
func networkPolicies() source.Kind {
	return source.Kind{
		Name: kindNetworkPolicy, GVR: networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), Namespaced: true,
		Example: &networkingv1.NetworkPolicy{}, AddToScheme: networkingv1.AddToScheme,
		Transform: source.Typed(netpol.Compile),
	}
}

// clusterState is the mutable picture of the cluster: what the changes of all sources add up to. It belongs to the
// controller's goroutine.
type clusterState struct {
	node     string
	index    *endpoint.Index
	model    *engine.Model
	problems map[rule.Ref][]rule.Problem

	lastCIDRs []netip.Prefix
}

func newClusterState(node string) *clusterState {
	return &clusterState{
		node: node, index: endpoint.NewIndex(), model: engine.NewModel(engine.Config{Node: node}),
		problems: map[rule.Ref][]rule.Problem{},
	}
}

// apply takes over one batch and returns what it changed; the delta is nil if no verdict can differ.
func (s *clusterState) apply(b source.Batch) (*engine.Snapshot, *engine.Delta) {
	for _, c := range b.Changes {
		s.change(c)
	}
	s.model.ApplyEndpoints(s.index.Flush())
	s.model.SetPodCIDRs(s.index.PodCIDRs(), s.podCIDRs())
	return s.model.Commit()
}

func (s *clusterState) change(c source.Change) {
	switch o := c.Object.(type) {
	case *cluster.Pod:
		s.index.SetPod(o)
	case *cluster.Node:
		s.index.SetNode(o)
	case *cluster.Namespace:
		s.index.SetNamespace(o)
	case *rule.Policy:
		s.model.SetPolicy(o)
		if len(o.Problems) > 0 {
			s.problems[o.Ref] = o.Problems
		} else {
			delete(s.problems, o.Ref)
		}
	case nil:
		s.remove(c)
	}
}

func (s *clusterState) remove(c source.Change) {
	switch c.Kind {
	case source.KindPod:
		s.index.DeletePod(c.Key)
	case source.KindNode:
		s.index.DeleteNode(c.Key)
	case source.KindNamespace:
		s.index.DeleteNamespace(c.Key)
	case kindNetworkPolicy:
		namespace, name, _ := strings.Cut(c.Key, "/")
		ref := netpol.Ref(namespace, name)
		s.model.DeletePolicy(ref)
		delete(s.problems, ref)
	}
}

// podCIDRs are those of this node. Should its Node object vanish, the last known ones stay: an address inside them is
// still an address of a local pod.
func (s *clusterState) podCIDRs() []netip.Prefix {
	if n, ok := s.index.Node(s.node); ok {
		s.lastCIDRs = n.PodCIDRs
	}
	return s.lastCIDRs
}

// unknownNode is the error of an agent whose node the cluster does not have.
func (s *clusterState) unknownNode() error {
	return fmt.Errorf("the cluster has no node named %q; give --node-name one of those that 'kubectl get nodes' lists (%d nodes)",
		s.node, s.index.Counts().Nodes)
}
