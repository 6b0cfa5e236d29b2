package clusternetpol_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// oracle judges slowly and obviously over the API objects, from the text of the documentation. It shares nothing with
// the compiled path but the description of the test cluster.
type oracle struct {
	cnps []*v1alpha2.ClusterNetworkPolicy
	nps  []*networkingv1.NetworkPolicy
	// legacy are the alpha and the beta.
	legacy []legacy
}

var podLabels = map[string]labels.Set{"web": {"app": "web"}, "db": {"app": "db", "tier": "back"}, "plain": {}}
var namespaceLabels = map[string]labels.Set{
	"a": {"team": "x", "kubernetes.io/metadata.name": "a"}, "b": {"team": "y", "kubernetes.io/metadata.name": "b"},
	"c": {"kubernetes.io/metadata.name": "c"},
}
var nodeLabels = map[string]labels.Set{"n1": {"role": "worker"}, "n2": {"role": "edge"}}

func selects(s *metav1.LabelSelector, set labels.Set) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err)
	}
	return sel.Matches(set)
}

func podMatches(namespaces, pods *metav1.LabelSelector, name string) bool {
	ns, pod, isPod := strings.Cut(name, "/")
	return isPod && selects(namespaces, namespaceLabels[ns]) && selects(pods, podLabels[pod])
}

var everything = &metav1.LabelSelector{}

func (o *oracle) allowed(from, to, port string) bool {
	if from == to {
		return true
	}
	return o.direction(from, to, to, port, true) && o.direction(to, from, to, port, false)
}

// compare asks for every verdict of the test cluster, 720 in all.
func (o *oracle) compare(t *rapid.T, w *polytest.World) {
	for _, from := range polytest.Peers {
		for _, to := range polytest.Peers {
			for _, port := range polytest.Ports {
				if got, want := w.Allowed(from, to, port), o.allowed(from, to, port); got != want {
					t.Fatalf("%s -> %s %s: %t, want %t: %+v", from, to, port, got, want, w.Verdict(from, to, port))
				}
			}
		}
	}
}

// direction judges for pod; to is the destination, which named ports belong to.
func (o *oracle) direction(peer, pod, to, port string, ingress bool) bool {
	if !strings.Contains(pod, "/") {
		return true // only pods are judged
	}
	if action := o.tier(v1alpha2.AdminTier, peer, pod, to, port, ingress); action == "Accept" || action == "Deny" {
		return action == "Accept"
	}
	if isolated, allows := o.networkPolicy(peer, pod, ingress); isolated {
		return allows || peer == "n1" // the node that all pods run on
	}
	return o.tier(v1alpha2.BaselineTier, peer, pod, to, port, ingress) != "Deny"
}

func (o *oracle) tier(
	tier v1alpha2.Tier, peer, pod, to, port string, ingress bool,
) v1alpha2.ClusterNetworkPolicyRuleAction {
	var list []*v1alpha2.ClusterNetworkPolicy
	for _, p := range o.cnps {
		s := &p.Spec.Subject
		if p.Spec.Tier == tier && (s.Namespaces != nil && podMatches(s.Namespaces, everything, pod) ||
			s.Pods != nil && podMatches(&s.Pods.NamespaceSelector, &s.Pods.PodSelector, pod)) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *v1alpha2.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Spec.Priority, b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range list {
		if ingress {
			for _, r := range p.Spec.Ingress {
				for _, f := range r.From {
					if peerMatches(f.Namespaces, f.Pods, peer) && protocolsMatch(r.Protocols, to, port) {
						return r.Action
					}
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			for _, t := range r.To {
				if (peerMatches(t.Namespaces, t.Pods, peer) || outsideMatches(&t, peer)) &&
					protocolsMatch(r.Protocols, to, port) {
					return r.Action
				}
			}
		}
	}
	return ""
}

func peerMatches(namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod, peer string) bool {
	return namespaces != nil && podMatches(namespaces, everything, peer) ||
		pods != nil && podMatches(&pods.NamespaceSelector, &pods.PodSelector, peer)
}

func outsideMatches(t *v1alpha2.ClusterNetworkPolicyEgressPeer, peer string) bool {
	if set, isNode := nodeLabels[peer]; isNode && t.Nodes != nil && selects(t.Nodes, set) {
		return true
	}
	return slices.ContainsFunc(t.Networks, func(c v1alpha2.CIDR) bool {
		return netip.MustParsePrefix(string(c)).Contains(netip.MustParseAddr(polytest.Address(peer)))
	})
}

func protocolsMatch(protocols []v1alpha2.ClusterNetworkPolicyProtocol, to, port string) bool {
	if protocols == nil {
		return true
	}
	number, proto, hasPort := strings.Cut(port, "/")
	if !hasPort {
		return false
	}
	var n int32
	if _, err := fmt.Sscan(number, &n); err != nil {
		panic(err)
	}
	in := func(p *v1alpha2.Port) bool {
		return p.Range == nil && p.Number == n || p.Range != nil && p.Range.Start <= n && n <= p.Range.End
	}
	for _, p := range protocols {
		switch {
		case p.TCP != nil && proto == "TCP" && in(p.TCP.DestinationPort),
			p.UDP != nil && proto == "UDP" && in(p.UDP.DestinationPort),
			p.SCTP != nil && proto == "SCTP" && in(p.SCTP.DestinationPort),
			p.DestinationNamedPort != "" && named(to, p.DestinationNamedPort) == port:
			return true
		}
	}
	return false
}

// named is the port behind a name, as the test cluster has them.
func named(to, name string) string {
	switch {
	case !strings.Contains(to, "/"):
		return ""
	case name == "dns":
		return "53/UDP"
	case name == "http" && strings.HasSuffix(to, "/db"):
		return "8080/TCP"
	case name == "http":
		return "80/TCP"
	}
	return ""
}

// networkPolicy knows no more of that API than genNetworkPolicy writes.
func (o *oracle) networkPolicy(peer, pod string, ingress bool) (isolated, allows bool) {
	ns, name, _ := strings.Cut(pod, "/")
	for _, p := range o.nps {
		direction := networkingv1.PolicyTypeEgress
		if ingress {
			direction = networkingv1.PolicyTypeIngress
		}
		if p.Namespace != ns || !selects(&p.Spec.PodSelector, podLabels[name]) ||
			!slices.Contains(p.Spec.PolicyTypes, direction) {
			continue
		}
		isolated = true
		if ingress {
			for _, r := range p.Spec.Ingress {
				allows = allows || podMatches(r.From[0].NamespaceSelector, everything, peer)
			}
		} else {
			for _, r := range p.Spec.Egress {
				allows = allows || podMatches(r.To[0].NamespaceSelector, everything, peer)
			}
		}
	}
	for i := range o.legacy {
		if ingress {
			closed, open := o.legacy[i].ingress(peer, pod)
			isolated, allows = isolated || closed, allows || open
		}
	}
	return isolated, allows
}

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

// TestOracle compares whole matrices.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var o oracle
		var policies []*rule.Policy
		for i := range rapid.IntRange(0, 5).Draw(rt, "cluster policies") {
			p := genCluster(fmt.Sprintf("p%d", i)).Draw(rt, "policy")
			o.cnps = append(o.cnps, p)
			compiled := clusternetpol.Compile(p)
			if compiled.Problems != nil {
				rt.Fatalf("%v", compiled.Problems)
			}
			policies = append(policies, compiled)
		}
		for i := range rapid.IntRange(0, 2).Draw(rt, "network policies") {
			p := genNetworkPolicy(fmt.Sprintf("n%d", i)).Draw(rt, "policy")
			o.nps = append(o.nps, p)
			policies = append(policies, netpol.Compile(p))
		}
		o.compare(rt, polytest.New(t, policies...))
	})
}
