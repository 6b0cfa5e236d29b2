package convert

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/firstpacket/firstpacket/policycache/adminnetpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// maxItems is the length of lists that the API server admits in a ClusterNetworkPolicy.
const maxItems = 25

func (c *converter) admin(anp *v1alpha1.AdminNetworkPolicy) error {
	if c.unclear("AdminNetworkPolicy "+anp.Name, adminnetpol.Compile(anp)) {
		return nil
	}
	out := &v1alpha2.ClusterNetworkPolicy{Spec: v1alpha2.ClusterNetworkPolicySpec{
		Tier: v1alpha2.AdminTier, Priority: anp.Spec.Priority, Subject: subject(&anp.Spec.Subject),
	}}
	for i := range anp.Spec.Ingress {
		r := &anp.Spec.Ingress[i]
		out.Spec.Ingress = append(out.Spec.Ingress, ingressRule(r.Name, string(r.Action), r.From, r.Ports))
	}
	for i := range anp.Spec.Egress {
		r := &anp.Spec.Egress[i]
		var to []v1alpha2.ClusterNetworkPolicyEgressPeer
		for j := range r.To {
			p := &r.To[j]
			to = append(to, v1alpha2.ClusterNetworkPolicyEgressPeer{
				Namespaces: p.Namespaces, Pods: namespacedPod(p.Pods), Nodes: p.Nodes,
				Networks: recast[v1alpha2.CIDR](p.Networks), DomainNames: recast[v1alpha2.DomainName](p.DomainNames),
			})
		}
		out.Spec.Egress = append(out.Spec.Egress, egressRule(r.Name, string(r.Action), to, r.Ports))
	}
	return c.addCluster(out, &anp.ObjectMeta, "-admin")
}

func (c *converter) baseline(banp *v1alpha1.BaselineAdminNetworkPolicy) error {
	if c.unclear("BaselineAdminNetworkPolicy "+banp.Name, adminnetpol.CompileBaseline(banp)) {
		return nil
	}
	out := &v1alpha2.ClusterNetworkPolicy{Spec: v1alpha2.ClusterNetworkPolicySpec{
		Tier: v1alpha2.BaselineTier, Priority: adminnetpol.BaselinePriority - 1, Subject: subject(&banp.Spec.Subject),
	}}
	for i := range banp.Spec.Ingress {
		r := &banp.Spec.Ingress[i]
		out.Spec.Ingress = append(out.Spec.Ingress, ingressRule(r.Name, string(r.Action), r.From, r.Ports))
	}
	for i := range banp.Spec.Egress {
		r := &banp.Spec.Egress[i]
		var to []v1alpha2.ClusterNetworkPolicyEgressPeer
		for j := range r.To {
			p := &r.To[j]
			to = append(to, v1alpha2.ClusterNetworkPolicyEgressPeer{
				Namespaces: p.Namespaces, Pods: namespacedPod(p.Pods), Nodes: p.Nodes,
				Networks: recast[v1alpha2.CIDR](p.Networks),
			})
		}
		out.Spec.Egress = append(out.Spec.Egress, egressRule(r.Name, string(r.Action), to, r.Ports))
	}
	return c.addCluster(out, &banp.ObjectMeta, "-baseline",
		"A BaselineAdminNetworkPolicy has no priority. This is the last one; it must be the only policy that has it.")
}

// unclear leaves out objects of which any part cannot be understood: they fail closed, and no object that the API
// server accepts does that in the same way.
func (c *converter) unclear(what string, p *rule.Policy) bool {
	if len(p.Problems) == 0 {
		return false
	}
	lines := make([]string, len(p.Problems))
	for i, problem := range p.Problems {
		lines[i] = problem.String()
	}
	c.comment("%s is left out until this is put right: %s", what, strings.Join(lines, "; "))
	return true
}

func (c *converter) addCluster(
	out *v1alpha2.ClusterNetworkPolicy, old *metav1.ObjectMeta, suffix string, comments ...string,
) error {
	out.TypeMeta = metav1.TypeMeta{APIVersion: policyVersion, Kind: kindClusterNetworkPolicy}
	out.ObjectMeta = c.meta(kindClusterNetworkPolicy, old, suffix)
	comments = append(renamed(old.Name, out.Name), comments...)
	long := func(field string, n int) {
		if n > maxItems {
			comments = append(comments, fmt.Sprintf(
				"No equivalent: %s: %d entries, and the API server admits %d; divide the policy", field, n, maxItems))
		}
	}
	long("spec.ingress", len(out.Spec.Ingress))
	long("spec.egress", len(out.Spec.Egress))
	for i := range out.Spec.Ingress {
		long(fmt.Sprintf("spec.ingress[%d].from", i), len(out.Spec.Ingress[i].From))
		long(fmt.Sprintf("spec.ingress[%d].protocols", i), len(out.Spec.Ingress[i].Protocols))
	}
	for i := range out.Spec.Egress {
		long(fmt.Sprintf("spec.egress[%d].to", i), len(out.Spec.Egress[i].To))
		long(fmt.Sprintf("spec.egress[%d].protocols", i), len(out.Spec.Egress[i].Protocols))
	}
	return c.add(out, comments...)
}

func ingressRule(
	name, action string, from []v1alpha1.AdminNetworkPolicyIngressPeer, ports *[]v1alpha1.AdminNetworkPolicyPort,
) v1alpha2.ClusterNetworkPolicyIngressRule {
	r := v1alpha2.ClusterNetworkPolicyIngressRule{Name: name, Action: clusterAction(action), Protocols: protocols(ports)}
	for i := range from {
		r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{
			Namespaces: from[i].Namespaces, Pods: namespacedPod(from[i].Pods),
		})
	}
	return r
}

func egressRule(
	name, action string, to []v1alpha2.ClusterNetworkPolicyEgressPeer, ports *[]v1alpha1.AdminNetworkPolicyPort,
) v1alpha2.ClusterNetworkPolicyEgressRule {
	return v1alpha2.ClusterNetworkPolicyEgressRule{
		Name: name, Action: clusterAction(action), To: to, Protocols: protocols(ports),
	}
}

// clusterAction translates the one action that has another name now.
func clusterAction(action string) v1alpha2.ClusterNetworkPolicyRuleAction {
	if action == string(v1alpha1.AdminNetworkPolicyRuleActionAllow) {
		return v1alpha2.ClusterNetworkPolicyRuleActionAccept
	}
	return v1alpha2.ClusterNetworkPolicyRuleAction(action)
}

func protocols(ports *[]v1alpha1.AdminNetworkPolicyPort) []v1alpha2.ClusterNetworkPolicyProtocol {
	if ports == nil {
		return nil
	}
	var out []v1alpha2.ClusterNetworkPolicyProtocol
	for _, p := range *ports {
		switch {
		case p.NamedPort != nil:
			out = append(out, v1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: *p.NamedPort})
		case p.PortNumber != nil:
			out = append(out, protocolWith(p.PortNumber.Protocol, &v1alpha2.Port{Number: p.PortNumber.Port}))
		case p.PortRange != nil:
			r := &v1alpha2.PortRange{Start: p.PortRange.Start, End: p.PortRange.End}
			out = append(out, protocolWith(p.PortRange.Protocol, &v1alpha2.Port{Range: r}))
		}
	}
	return out
}

func protocolWith(proto corev1.Protocol, port *v1alpha2.Port) v1alpha2.ClusterNetworkPolicyProtocol {
	switch proto {
	case corev1.ProtocolUDP:
		return v1alpha2.ClusterNetworkPolicyProtocol{UDP: &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}}
	case corev1.ProtocolSCTP:
		return v1alpha2.ClusterNetworkPolicyProtocol{SCTP: &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}}
	}
	return v1alpha2.ClusterNetworkPolicyProtocol{TCP: &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}}
}

func subject(s *v1alpha1.AdminNetworkPolicySubject) v1alpha2.ClusterNetworkPolicySubject {
	return v1alpha2.ClusterNetworkPolicySubject{Namespaces: s.Namespaces, Pods: namespacedPod(s.Pods)}
}

func namespacedPod(p *v1alpha1.NamespacedPod) *v1alpha2.NamespacedPod {
	if p == nil {
		return nil
	}
	return &v1alpha2.NamespacedPod{NamespaceSelector: p.NamespaceSelector, PodSelector: p.PodSelector}
}

func recast[To, From ~string](list []From) []To {
	var out []To
	for _, s := range list {
		out = append(out, To(s))
	}
	return out
}
