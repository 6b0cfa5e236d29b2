package clusternetpol_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/adminnetpol"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// legacy is what the oracle knows of the two oldest dialects: the namespaces that an annotation isolates for ingress,
// and whom their policies let in.
type legacy struct {
	isolated map[string]bool
	allows   []legacyAllow
}

// legacyAllow lets pods of one namespace be reached: by pods of their own namespace with the labels, or, if those are
// nil, by all pods of namespaces with the labels.
type legacyAllow struct {
	namespace        string
	subject          labels.Set
	pods, namespaces labels.Set
}

func hasLabels(want, have labels.Set) bool { return want.AsSelector().Matches(have) }

func (l *legacy) ingress(peer, pod string) (isolated, allows bool) {
	ns, name, _ := strings.Cut(pod, "/")
	if !l.isolated[ns] {
		return false, false
	}
	from, client, isPod := strings.Cut(peer, "/")
	for _, a := range l.allows {
		if a.namespace != ns || !hasLabels(a.subject, podLabels[name]) || !isPod {
			continue
		}
		if a.namespaces != nil {
			allows = allows || hasLabels(a.namespaces, namespaceLabels[from])
		} else {
			allows = allows || from == ns && hasLabels(a.pods, podLabels[client])
		}
	}
	return true, allows
}

// flow writes labels as YAML.
func flow(set labels.Set) string {
	var pairs []string
	for k, v := range set {
		pairs = append(pairs, fmt.Sprintf("%s: %q", k, v)) // y is a boolean otherwise
	}
	return "{" + strings.Join(pairs, ", ") + "}"
}

var (
	genSet = rapid.SampledFrom([]labels.Set{{}, {"app": "web"}, {"app": "db", "tier": "back"}})
	genNS  = rapid.SampledFrom([]labels.Set{{}, {"team": "x"}, {"team": "y"}})
)

// genLegacyAllow draws one allowed peer of the pods of a namespace.
func genLegacyAllow(t *rapid.T) legacyAllow {
	a := legacyAllow{
		namespace: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace"), subject: genSet.Draw(t, "subject"),
	}
	if rapid.Bool().Draw(t, "by namespace") {
		a.namespaces = genNS.Draw(t, "namespaces")
	} else {
		a.pods = genSet.Draw(t, "pods")
	}
	return a
}

func (a *legacyAllow) alpha(name string) *alpha.NetworkPolicy {
	peer := fmt.Sprintf("pods: %s", flow(a.pods))
	if a.namespaces != nil {
		peer = fmt.Sprintf("namespaces: %s", flow(a.namespaces))
	}
	p := new(alpha.NetworkPolicy)
	text := fmt.Sprintf("{metadata: {name: %s, namespace: %s}, spec: {podSelector: %s, allowIncoming: {from: [{%s}]}}}",
		name, a.namespace, flow(a.subject), peer)
	if err := yaml.Unmarshal([]byte(text), p); err != nil {
		panic(err)
	}
	return p
}

func (a *legacyAllow) beta(name string) *extensionsv1beta1.NetworkPolicy {
	p := &extensionsv1beta1.NetworkPolicy{}
	p.Namespace, p.Name = a.namespace, name
	p.Spec.PodSelector = metav1.LabelSelector{MatchLabels: a.subject}
	peer := extensionsv1beta1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: a.pods}}
	if a.namespaces != nil {
		peer = extensionsv1beta1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchLabels: a.namespaces}}
	}
	p.Spec.Ingress = []extensionsv1beta1.NetworkPolicyIngressRule{{From: []extensionsv1beta1.NetworkPolicyPeer{peer}}}
	return p
}

// asAdmin writes the ingress of a ClusterNetworkPolicy as AdminNetworkPolicy rules.
func asAdmin(rules []v1alpha2.ClusterNetworkPolicyIngressRule) (out []v1alpha1.AdminNetworkPolicyIngressRule) {
	for _, r := range rules {
		a := v1alpha1.AdminNetworkPolicyIngressRule{Action: v1alpha1.AdminNetworkPolicyRuleAction(r.Action)}
		if r.Action == v1alpha2.ClusterNetworkPolicyRuleActionAccept {
			a.Action = v1alpha1.AdminNetworkPolicyRuleActionAllow
		}
		for _, f := range r.From {
			peer := v1alpha1.AdminNetworkPolicyIngressPeer{Namespaces: f.Namespaces}
			if f.Pods != nil {
				peer.Pods = &v1alpha1.NamespacedPod{
					NamespaceSelector: f.Pods.NamespaceSelector, PodSelector: f.Pods.PodSelector,
				}
			}
			a.From = append(a.From, peer)
		}
		if r.Protocols != nil {
			a.Ports = &[]v1alpha1.AdminNetworkPolicyPort{}
		}
		for _, p := range r.Protocols {
			*a.Ports = append(*a.Ports, asAdminPort(p))
		}
		out = append(out, a)
	}
	return out
}

func asAdminPort(p v1alpha2.ClusterNetworkPolicyProtocol) v1alpha1.AdminNetworkPolicyPort {
	if p.DestinationNamedPort != "" {
		return v1alpha1.AdminNetworkPolicyPort{NamedPort: &p.DestinationNamedPort}
	}
	proto := corev1.ProtocolTCP
	var port *v1alpha2.Port
	switch {
	case p.UDP != nil:
		proto, port = corev1.ProtocolUDP, p.UDP.DestinationPort
	case p.SCTP != nil:
		proto, port = corev1.ProtocolSCTP, p.SCTP.DestinationPort
	default:
		port = p.TCP.DestinationPort
	}
	if port.Range != nil {
		return v1alpha1.AdminNetworkPolicyPort{
			PortRange: &v1alpha1.PortRange{Protocol: proto, Start: port.Range.Start, End: port.Range.End},
		}
	}
	return v1alpha1.AdminNetworkPolicyPort{PortNumber: &v1alpha1.Port{Protocol: proto, Port: port.Number}}
}

func asAdminSubject(s v1alpha2.ClusterNetworkPolicySubject) v1alpha1.AdminNetworkPolicySubject {
	out := v1alpha1.AdminNetworkPolicySubject{Namespaces: s.Namespaces}
	if s.Pods != nil {
		out.Pods = &v1alpha1.NamespacedPod{NamespaceSelector: s.Pods.NamespaceSelector, PodSelector: s.Pods.PodSelector}
	}
	return out
}

// drawAdmin draws a policy of the older API of a tier, for the oracle as the ClusterNetworkPolicy that means the same:
// after those of the same priority, and the baseline after all.
func drawAdmin(t *rapid.T, o *oracle, tier v1alpha2.Tier) *rule.Policy {
	p := genCluster("~"+string(tier)).Draw(t, "older policy") // a tilde comes after all letters
	p.Spec.Tier, p.Spec.Egress = tier, nil
	o.cnps = append(o.cnps, p)
	if tier == v1alpha2.AdminTier {
		anp := &v1alpha1.AdminNetworkPolicy{}
		anp.Name = "anp"
		anp.Spec.Priority, anp.Spec.Subject = p.Spec.Priority, asAdminSubject(p.Spec.Subject)
		anp.Spec.Ingress = asAdmin(p.Spec.Ingress)
		return adminnetpol.Compile(anp)
	}
	banp := &v1alpha1.BaselineAdminNetworkPolicy{}
	banp.Name = "default"
	p.Spec.Priority = 1001
	banp.Spec.Subject = asAdminSubject(p.Spec.Subject)
	for i := range p.Spec.Ingress {
		if p.Spec.Ingress[i].Action == v1alpha2.ClusterNetworkPolicyRuleActionPass {
			p.Spec.Ingress[i].Action = v1alpha2.ClusterNetworkPolicyRuleActionDeny
		}
	}
	for _, r := range asAdmin(p.Spec.Ingress) {
		banp.Spec.Ingress = append(banp.Spec.Ingress, v1alpha1.BaselineAdminNetworkPolicyIngressRule{
			Action: v1alpha1.BaselineAdminNetworkPolicyRuleAction(r.Action), From: r.From, Ports: r.Ports,
		})
	}
	return adminnetpol.CompileBaseline(banp)
}

// drawLegacy draws namespaces and policies of both oldest dialects, in force as their sets have them.
func drawLegacy(t *rapid.T, o *oracle) (policies []*rule.Policy) {
	sets := []*isolation.Set{alpha.NewSet(), beta.NewSet()}
	inForce := map[rule.Ref]*rule.Policy{}
	carry := func(c isolation.Changes) {
		for _, p := range c.Set {
			inForce[p.Ref] = p
		}
		for _, ref := range c.Deleted {
			delete(inForce, ref)
		}
	}
	o.legacy = []legacy{{isolated: map[string]bool{}}, {isolated: map[string]bool{}}}
	for i, set := range sets {
		for j := range rapid.IntRange(0, 2).Draw(t, "legacy policies") {
			a := genLegacyAllow(t)
			o.legacy[i].allows = append(o.legacy[i].allows, a)
			name := fmt.Sprintf("l%d", j)
			if i == 0 {
				carry(set.SetPolicy(alpha.Compile(a.alpha(name))))
			} else {
				carry(set.SetPolicy(beta.Compile(a.beta(name))))
			}
		}
		for _, ns := range []string{"a", "b"} {
			o.legacy[i].isolated[ns] = rapid.IntRange(0, 2).Draw(t, "isolated") == 0
			if !o.legacy[i].isolated[ns] {
				continue
			}
			n := cluster.UnknownNamespace(ns)
			if i == 0 {
				n.Isolation = "on"
			} else {
				n.NetworkPolicy = `{"ingress": {"isolation": "DefaultDeny"}}`
			}
			carry(set.SetNamespace(n))
		}
	}
	for _, p := range inForce {
		policies = append(policies, p)
	}
	return policies
}

// TestOracleOfAllDialects compares whole matrices of policies of all dialects in force together.
func TestOracleOfAllDialects(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var o oracle
		var policies []*rule.Policy
		for i := range rapid.IntRange(0, 3).Draw(rt, "cluster policies") {
			p := genCluster(fmt.Sprintf("p%d", i)).Draw(rt, "policy")
			o.cnps = append(o.cnps, p)
			policies = append(policies, clusternetpol.Compile(p))
		}
		for _, tier := range []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier} {
			if rapid.Bool().Draw(rt, "older policy") {
				policies = append(policies, drawAdmin(rt, &o, tier))
			}
		}
		for i := range rapid.IntRange(0, 2).Draw(rt, "network policies") {
			p := genNetworkPolicy(fmt.Sprintf("n%d", i)).Draw(rt, "policy")
			o.nps = append(o.nps, p)
			policies = append(policies, netpol.Compile(p))
		}
		policies = append(policies, drawLegacy(rt, &o)...)
		o.compare(rt, polytest.New(t, policies...))
	})
}
