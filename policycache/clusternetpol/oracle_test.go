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
