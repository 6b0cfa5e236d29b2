package clusternetpol_test

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

func matchLabels(pairs ...string) metav1.LabelSelector {
	s := metav1.LabelSelector{MatchLabels: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		s.MatchLabels[pairs[i]] = pairs[i+1]
	}
	return s
}

var (
	genNamespaces = rapid.SampledFrom([]metav1.LabelSelector{
		{}, matchLabels("team", "x"), matchLabels("team", "y"), matchLabels("kubernetes.io/metadata.name", "c"),
		{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: "DoesNotExist"}}},
	})
	genPodLabels = rapid.SampledFrom([]metav1.LabelSelector{
		{}, matchLabels("app", "web"), matchLabels("app", "db", "tier", "back"),
		{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "NotIn", Values: []string{"db"}}}},
	})
	genNodes    = rapid.SampledFrom([]metav1.LabelSelector{{}, matchLabels("role", "edge"), matchLabels("role", "none")})
	genNetworks = rapid.SampledFrom([][]v1alpha2.CIDR{
		{"0.0.0.0/0", "::/0"}, {"10.0.2.0/24"}, {"10.0.4.0/22", "10.0.1.7/32"}, {"10.9.9.9/8"}, {"::/0"},
	})
	genAction = rapid.SampledFrom([]v1alpha2.ClusterNetworkPolicyRuleAction{"Accept", "Deny", "Pass"})
	genPort   = rapid.SampledFrom([]*v1alpha2.Port{
		{Number: 80}, {Number: 53}, {Number: 9}, {Range: &v1alpha2.PortRange{Start: 80, End: 8080}},
		{Range: &v1alpha2.PortRange{Start: 1, End: 65535}},
	})
	genNamespacedPod = rapid.Custom(func(t *rapid.T) *v1alpha2.NamespacedPod {
		return &v1alpha2.NamespacedPod{
			NamespaceSelector: genNamespaces.Draw(t, "namespaces"), PodSelector: genPodLabels.Draw(t, "pods"),
		}
	})
	genProtocol = rapid.Custom(func(t *rapid.T) v1alpha2.ClusterNetworkPolicyProtocol {
		port := genPort.Draw(t, "port")
		switch rapid.IntRange(0, 2).Draw(t, "protocol") {
		case 0:
			return v1alpha2.ClusterNetworkPolicyProtocol{TCP: &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}}
		case 1:
			return v1alpha2.ClusterNetworkPolicyProtocol{UDP: &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}}
		}
		return v1alpha2.ClusterNetworkPolicyProtocol{SCTP: &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}}
	})
	genName = rapid.Map(rapid.SampledFrom([]string{"http", "dns", "none"}),
		func(name string) v1alpha2.ClusterNetworkPolicyProtocol {
			return v1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: name}
		})
)

func drawProtocols(t *rapid.T, names bool) []v1alpha2.ClusterNetworkPolicyProtocol {
	if rapid.Bool().Draw(t, "any protocol") {
		return nil
	}
	gen := genProtocol
	if names {
		gen = rapid.OneOf(genProtocol, genName)
	}
	return rapid.SliceOfN(gen, 1, 3).Draw(t, "protocols")
}

var genIngress = rapid.Custom(func(t *rapid.T) v1alpha2.ClusterNetworkPolicyIngressRule {
	r := v1alpha2.ClusterNetworkPolicyIngressRule{Action: genAction.Draw(t, "action"), Protocols: drawProtocols(t, true)}
	for range rapid.IntRange(1, 3).Draw(t, "peers") {
		if rapid.Bool().Draw(t, "pods") {
			r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{Pods: genNamespacedPod.Draw(t, "peer")})
			continue
		}
		r.From = append(r.From, v1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: new(genNamespaces.Draw(t, "peer"))})
	}
	return r
})

var genEgress = rapid.Custom(func(t *rapid.T) v1alpha2.ClusterNetworkPolicyEgressRule {
	r := v1alpha2.ClusterNetworkPolicyEgressRule{Action: genAction.Draw(t, "action")}
	inside := true
	for range rapid.IntRange(1, 3).Draw(t, "peers") {
		var p v1alpha2.ClusterNetworkPolicyEgressPeer
		switch rapid.IntRange(0, 3).Draw(t, "peer") {
		case 0:
			p.Pods = genNamespacedPod.Draw(t, "pods")
		case 1:
			p.Namespaces = new(genNamespaces.Draw(t, "namespaces"))
		case 2:
			p.Nodes, inside = new(genNodes.Draw(t, "nodes")), false
		default:
			p.Networks, inside = genNetworks.Draw(t, "networks"), false
		}
		r.To = append(r.To, p)
	}
	r.Protocols = drawProtocols(t, inside)
	return r
})

func genCluster(name string) *rapid.Generator[*v1alpha2.ClusterNetworkPolicy] {
	return rapid.Custom(func(t *rapid.T) *v1alpha2.ClusterNetworkPolicy {
		p := &v1alpha2.ClusterNetworkPolicy{}
		p.Name = name
		p.Spec.Tier = rapid.SampledFrom([]v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier}).Draw(t, "tier")
		p.Spec.Priority = rapid.SampledFrom([]int32{0, 1, 2, 1000}).Draw(t, "priority")
		if rapid.Bool().Draw(t, "pods") {
			p.Spec.Subject.Pods = genNamespacedPod.Draw(t, "subject")
		} else {
			p.Spec.Subject.Namespaces = new(genNamespaces.Draw(t, "subject"))
		}
		p.Spec.Ingress = rapid.SliceOfN(genIngress, 0, 3).Draw(t, "ingress")
		p.Spec.Egress = rapid.SliceOfN(genEgress, 0, 3).Draw(t, "egress")
		return p
	})
}

func genNetworkPolicy(name string) *rapid.Generator[*networkingv1.NetworkPolicy] {
	return rapid.Custom(func(t *rapid.T) *networkingv1.NetworkPolicy {
		p := &networkingv1.NetworkPolicy{}
		p.Namespace, p.Name = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"), name
		p.Spec.PodSelector = genPodLabels.Draw(t, "pods")
		p.Spec.PolicyTypes = rapid.SampledFrom([][]networkingv1.PolicyType{
			{"Ingress"}, {"Egress"}, {"Ingress", "Egress"},
		}).Draw(t, "types")
		peer := []networkingv1.NetworkPolicyPeer{{NamespaceSelector: new(genNamespaces.Draw(t, "peer"))}}
		if rapid.Bool().Draw(t, "allows") {
			p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peer}}
			p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peer}}
		}
		return p
	})
}
