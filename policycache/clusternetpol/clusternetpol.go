// Package clusternetpol compiles ClusterNetworkPolicy objects (policy.networking.k8s.io/v1alpha2).
//
// The rules are those of the API documentation (sigs.k8s.io/network-policy-api v0.2.0, apis/v1alpha2) with all fields
// of the experimental channel. How an object fails closed that cannot be understood is told in package tiered. The
// lengths of lists are limited by the API server alone: a manifest with more rules than it admits means what it says.
package clusternetpol

import (
	"fmt"

	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/internal/tiered"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// maxPriority is the last priority that the API admits; 0 is the first.
const maxPriority = 1000

// Ref gives the name under which the policy is known to the engine.
func Ref(name string) rule.Ref { return rule.Ref{Dialect: rule.ClusterNetworkPolicy, Name: name} }

// Compile never fails: what cannot be understood is in the result's Problems. The result shares no memory with cnp.
func Compile(cnp *v1alpha2.ClusterNetworkPolicy) *rule.Policy {
	p := &tiered.Policy{
		Ref:      Ref(cnp.Name),
		Priority: cnp.Spec.Priority,
		Subject:  tiered.Subject{Namespaces: cnp.Spec.Subject.Namespaces, Pods: pods(cnp.Spec.Subject.Pods)},
	}
	switch cnp.Spec.Tier {
	case v1alpha2.AdminTier:
		p.Tier = rule.Admin
	case v1alpha2.BaselineTier:
		p.Tier = rule.Baseline
	default:
		misplaced(p, "spec.tier", fmt.Sprintf("unknown tier %q", cnp.Spec.Tier))
		p.Tier = rule.Admin
	}
	if cnp.Spec.Priority < 0 || cnp.Spec.Priority > maxPriority {
		misplaced(p, "spec.priority", fmt.Sprintf("%d is not between 0 and %d", cnp.Spec.Priority, maxPriority))
	}
	for i := range cnp.Spec.Ingress {
		r := &cnp.Spec.Ingress[i]
		out := newRule(r.Name, r.Action, r.Protocols, "from")
		for j := range r.From {
			f := &r.From[j]
			out.Peers = append(out.Peers, tiered.Peer{Namespaces: f.Namespaces, Pods: pods(f.Pods)})
		}
		p.Ingress = append(p.Ingress, out)
	}
	for i := range cnp.Spec.Egress {
		r := &cnp.Spec.Egress[i]
		out := newRule(r.Name, r.Action, r.Protocols, "to")
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
	out.SetObject(cnp)
	return out
}

// misplaced notes that it cannot be told when the policy counts.
func misplaced(p *tiered.Policy, field, text string) {
	p.Closed, p.Priority = true, tiered.First
	text += "; the policy comes first, accepts nothing, and denies what it would have passed"
	p.Problems = append(p.Problems, rule.Problem{Field: field, Text: text})
}

func newRule(
	name string, action v1alpha2.ClusterNetworkPolicyRuleAction, protocols []v1alpha2.ClusterNetworkPolicyProtocol,
	peersField string,
) tiered.Rule {
	r := tiered.Rule{Name: name, Written: string(action), PeersField: peersField, PortsField: "protocols"}
	switch action {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept:
		r.Action = new(rule.Accept)
	case v1alpha2.ClusterNetworkPolicyRuleActionDeny:
		r.Action = new(rule.Deny)
	case v1alpha2.ClusterNetworkPolicyRuleActionPass:
		r.Action = new(rule.Pass)
	}
	if protocols != nil {
		r.Ports = make([]tiered.Port, len(protocols))
		for i := range protocols {
			r.Ports[i] = port(&protocols[i])
		}
	}
	return r
}

// port reads one entry of protocols. An entry that has no field set may have one that this version of the API does not
// know, and so may a protocol without a destination port.
func port(p *v1alpha2.ClusterNetworkPolicyProtocol) tiered.Port {
	set := 0
	for _, has := range [...]bool{p.TCP != nil, p.UDP != nil, p.SCTP != nil, p.DestinationNamedPort != ""} {
		if has {
			set++
		}
	}
	switch {
	case set != 1:
		return tiered.Bad("")
	case p.TCP != nil:
		return destination(packet.ProtoTCP, p.TCP.DestinationPort, ".tcp")
	case p.UDP != nil:
		return destination(packet.ProtoUDP, p.UDP.DestinationPort, ".udp")
	case p.SCTP != nil:
		return destination(packet.ProtoSCTP, p.SCTP.DestinationPort, ".sctp")
	}
	return tiered.Named(p.DestinationNamedPort, ".destinationNamedPort")
}

func destination(proto uint8, p *v1alpha2.Port, field string) tiered.Port {
	switch {
	case p == nil:
		return tiered.Bad(field)
	case (p.Number == 0) == (p.Range == nil):
		return tiered.Bad(field + ".destinationPort")
	case p.Range == nil:
		return tiered.Number(proto, p.Number, field+".destinationPort.number")
	}
	return tiered.Range(proto, p.Range.Start, p.Range.End, field+".destinationPort.range")
}

func pods(p *v1alpha2.NamespacedPod) *tiered.Pods {
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
