// Package adminnetpol compiles AdminNetworkPolicy and BaselineAdminNetworkPolicy objects
// (policy.networking.k8s.io/v1alpha1), the predecessors of ClusterNetworkPolicy.
//
// The rules are those of the API documentation (sigs.k8s.io/network-policy-api v0.2.0, apis/v1alpha1) with all fields
// of the experimental channel. How an object fails closed that cannot be understood is told in package tiered.
package adminnetpol

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/internal/tiered"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

const (
	// maxPriority is the last priority that the API admits; 0 is the first.
	maxPriority = 1000
	// BaselinePriority is that of the BaselineAdminNetworkPolicy, which has none of its own: after every
	// ClusterNetworkPolicy of the Baseline tier.
	BaselinePriority = maxPriority + 1
	// BaselineName is the only name that a BaselineAdminNetworkPolicy may have.
	BaselineName = "default"
)

// Ref gives the name under which an AdminNetworkPolicy is known to the engine.
func Ref(name string) rule.Ref { return rule.Ref{Dialect: rule.AdminNetworkPolicy, Name: name} }

// BaselineRef gives the name under which a BaselineAdminNetworkPolicy is known to the engine.
func BaselineRef(name string) rule.Ref {
	return rule.Ref{Dialect: rule.BaselineAdminNetworkPolicy, Name: name}
}

// Compile never fails: what cannot be understood is in the result's Problems. The result shares no memory with anp.
func Compile(anp *v1alpha1.AdminNetworkPolicy) *rule.Policy {
	p := &tiered.Policy{
		Ref: Ref(anp.Name), Tier: rule.Admin, Priority: anp.Spec.Priority,
		Subject: subject(&anp.Spec.Subject),
	}
	if anp.Spec.Priority < 0 || anp.Spec.Priority > maxPriority {
		p.Closed, p.Priority = true, tiered.First
		p.Problems = append(p.Problems, rule.Problem{Field: "spec.priority", Text: fmt.Sprintf(
			"%d is not between 0 and %d; the policy comes first, accepts nothing, and denies what it would have passed",
			anp.Spec.Priority, maxPriority)})
	}
	for i := range anp.Spec.Ingress {
		r := &anp.Spec.Ingress[i]
		out := newRule(r.Name, string(r.Action), r.Ports, "from")
		out.Peers = ingressPeers(r.From)
		p.Ingress = append(p.Ingress, out)
	}
	for i := range anp.Spec.Egress {
		r := &anp.Spec.Egress[i]
		out := newRule(r.Name, string(r.Action), r.Ports, "to")
		for j := range r.To {
			t := &r.To[j]
			out.Peers = append(out.Peers, tiered.Peer{
				Namespaces: t.Namespaces, Pods: pods(t.Pods), Nodes: t.Nodes,
				Networks: texts(t.Networks), Domains: texts(t.DomainNames),
			})
		}
		p.Egress = append(p.Egress, out)
	}
	out := tiered.Compile(p)
	out.SetObject(anp)
	return out
}

// CompileBaseline never fails: what cannot be understood is in the result's Problems. The result shares no memory with
// banp. There is but one such object in a cluster; others, by another name, accept nothing.
func CompileBaseline(banp *v1alpha1.BaselineAdminNetworkPolicy) *rule.Policy {
	p := &tiered.Policy{
		Ref: BaselineRef(banp.Name), Tier: rule.Baseline, Priority: BaselinePriority,
		Subject: subject(&banp.Spec.Subject),
	}
	if banp.Name != BaselineName {
		p.Closed = true
		p.Problems = append(p.Problems, rule.Problem{Field: "metadata.name", Text: fmt.Sprintf(
			"%q is not %q, the only name that the API admits; the policy accepts nothing", banp.Name, BaselineName)})
	}
	for i := range banp.Spec.Ingress {
		r := &banp.Spec.Ingress[i]
		out := newRule(r.Name, baseline(string(r.Action)), r.Ports, "from")
		out.Written = string(r.Action)
		out.Peers = ingressPeers(r.From)
		p.Ingress = append(p.Ingress, out)
	}
	for i := range banp.Spec.Egress {
		r := &banp.Spec.Egress[i]
		out := newRule(r.Name, baseline(string(r.Action)), r.Ports, "to")
		out.Written = string(r.Action)
		for j := range r.To {
			t := &r.To[j]
			out.Peers = append(out.Peers, tiered.Peer{
				Namespaces: t.Namespaces, Pods: pods(t.Pods), Nodes: t.Nodes, Networks: texts(t.Networks),
			})
		}
		p.Egress = append(p.Egress, out)
	}
	out := tiered.Compile(p)
	out.SetObject(banp)
	return out
}

// baseline removes the action that there is nothing after the Baseline tier to pass to.
func baseline(action string) string {
	if action == string(v1alpha1.AdminNetworkPolicyRuleActionPass) {
		return ""
	}
	return action
}

func newRule(name, action string, ports *[]v1alpha1.AdminNetworkPolicyPort, peersField string) tiered.Rule {
	r := tiered.Rule{Name: name, Written: action, PeersField: peersField, PortsField: "ports"}
	switch v1alpha1.AdminNetworkPolicyRuleAction(action) {
	case v1alpha1.AdminNetworkPolicyRuleActionAllow:
		r.Action = new(rule.Accept)
	case v1alpha1.AdminNetworkPolicyRuleActionDeny:
		r.Action = new(rule.Deny)
	case v1alpha1.AdminNetworkPolicyRuleActionPass:
		r.Action = new(rule.Pass)
	}
	if ports != nil {
		r.Ports = make([]tiered.Port, len(*ports))
		for i := range *ports {
			r.Ports[i] = port(&(*ports)[i])
		}
	}
	return r
}

func port(p *v1alpha1.AdminNetworkPolicyPort) tiered.Port {
	set := 0
	for _, has := range [...]bool{p.PortNumber != nil, p.NamedPort != nil, p.PortRange != nil} {
		if has {
			set++
		}
	}
	switch {
	case set != 1:
		return tiered.Bad("")
	case p.NamedPort != nil:
		return tiered.Named(*p.NamedPort, ".namedPort")
	case p.PortNumber != nil:
		proto, err := protocol(p.PortNumber.Protocol)
		if err != nil {
			return tiered.Port{Err: err, Field: ".portNumber.protocol"}
		}
		return tiered.Number(proto, p.PortNumber.Port, ".portNumber.port")
	}
	proto, err := protocol(p.PortRange.Protocol)
	if err != nil {
		return tiered.Port{Err: err, Field: ".portRange.protocol"}
	}
	return tiered.Range(proto, p.PortRange.Start, p.PortRange.End, ".portRange")
}

// protocol gives the IP protocol number; an absent protocol is TCP.
func protocol(p corev1.Protocol) (uint8, error) {
	switch p {
	case "", corev1.ProtocolTCP:
		return packet.ProtoTCP, nil
	case corev1.ProtocolUDP:
		return packet.ProtoUDP, nil
	case corev1.ProtocolSCTP:
		return packet.ProtoSCTP, nil
	}
	return 0, fmt.Errorf("unknown protocol %q", p)
}

func subject(s *v1alpha1.AdminNetworkPolicySubject) tiered.Subject {
	return tiered.Subject{Namespaces: s.Namespaces, Pods: pods(s.Pods)}
}

func ingressPeers(from []v1alpha1.AdminNetworkPolicyIngressPeer) []tiered.Peer {
	var peers []tiered.Peer
	for i := range from {
		peers = append(peers, tiered.Peer{Namespaces: from[i].Namespaces, Pods: pods(from[i].Pods)})
	}
	return peers
}

func pods(p *v1alpha1.NamespacedPod) *tiered.Pods {
	if p == nil {
		return nil
	}
	return &tiered.Pods{Namespaces: p.NamespaceSelector, Pods: p.PodSelector}
}

func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
