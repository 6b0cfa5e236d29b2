package beta

import (
	"fmt"

	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

// Later returns the path of the first field that Kubernetes 1.6 did not have, or "". An object with such a field means
// what a networking.k8s.io/v1 object with the same spec means, whatever the namespace's annotation.
func Later(s *extensionsv1beta1.NetworkPolicySpec) string {
	switch {
	case len(s.PolicyTypes) > 0:
		return "spec.policyTypes"
	case len(s.Egress) > 0:
		return "spec.egress"
	}
	for i := range s.Ingress {
		for j := range s.Ingress[i].From {
			p := &s.Ingress[i].From[j]
			switch {
			case p.IPBlock != nil:
				return fmt.Sprintf("spec.ingress[%d].from[%d].ipBlock", i, j)
			case p.PodSelector != nil && p.NamespaceSelector != nil: // until 1.10 they excluded each other
				return fmt.Sprintf("spec.ingress[%d].from[%d].namespaceSelector", i, j)
			}
		}
		for j := range s.Ingress[i].Ports {
			if s.Ingress[i].Ports[j].EndPort != nil {
				return fmt.Sprintf("spec.ingress[%d].ports[%d].endPort", i, j)
			}
		}
	}
	return ""
}

// compileLater compiles an object that has a field of a later version.
func compileLater(np *extensionsv1beta1.NetworkPolicy) *isolation.Policy {
	p := netpol.Compile(Modern(np))
	p.Ref = Ref(np.Namespace, np.Name)
	return &isolation.Policy{Rule: p, Standalone: true}
}

// Modern writes the same spec as an object of networking.k8s.io/v1, field by field; the meaning is the same if Later
// names a field. The result shares memory with np.
func Modern(np *extensionsv1beta1.NetworkPolicy) *networkingv1.NetworkPolicy {
	out := &networkingv1.NetworkPolicy{ObjectMeta: np.ObjectMeta}
	out.Spec.PodSelector = np.Spec.PodSelector
	for i := range np.Spec.Ingress {
		r := &np.Spec.Ingress[i]
		out.Spec.Ingress = append(out.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			Ports: modernPorts(r.Ports), From: modernPeers(r.From),
		})
	}
	for i := range np.Spec.Egress {
		r := &np.Spec.Egress[i]
		out.Spec.Egress = append(out.Spec.Egress, networkingv1.NetworkPolicyEgressRule{
			Ports: modernPorts(r.Ports), To: modernPeers(r.To),
		})
	}
	for _, t := range np.Spec.PolicyTypes {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyType(t))
	}
	return out
}

func modernPorts(ports []extensionsv1beta1.NetworkPolicyPort) []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for i := range ports {
		out = append(out, networkingv1.NetworkPolicyPort(ports[i]))
	}
	return out
}

func modernPeers(peers []extensionsv1beta1.NetworkPolicyPeer) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for i := range peers {
		p := networkingv1.NetworkPolicyPeer{
			PodSelector: peers[i].PodSelector, NamespaceSelector: peers[i].NamespaceSelector,
		}
		if b := peers[i].IPBlock; b != nil {
			p.IPBlock = &networkingv1.IPBlock{CIDR: b.CIDR, Except: b.Except}
		}
		out = append(out, p)
	}
	return out
}
