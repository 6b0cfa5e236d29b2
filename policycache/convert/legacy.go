package convert

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// denyName is the name of policies that isolate a namespace.
const denyName = "default-deny-ingress"

// namespace replaces the annotations of a namespace.
func (c *converter) namespace(ns *corev1.Namespace) {
	n := c.namespaces[ns.Name]
	var removed []string
	meta := metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels}
	for _, k := range []string{cluster.AnnotationIsolation, cluster.AnnotationNetworkPolicy} {
		if _, ok := ns.Annotations[k]; ok {
			removed = append(removed, k)
		}
	}
	if removed == nil {
		return
	}
	for k, v := range ns.Annotations {
		if k != cluster.AnnotationIsolation && k != cluster.AnnotationNetworkPolicy &&
			k != corev1.LastAppliedConfigAnnotation {
			metav1.SetMetaDataAnnotation(&meta, k, v)
		}
	}
	comments := []string{"Without " + strings.Join(removed, " and ") + ". In a live cluster: kubectl annotate namespace " +
		ns.Name + " " + strings.Join(removed, "- ") + "-"}
	for _, s := range []isolation.State{n.alpha, n.beta} {
		if s.Problem != "" {
			comments = append(comments, "The annotation could not be understood: "+s.Problem+".")
		}
	}
	c.mustAdd(&corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: meta,
	}, comments...)
	if n.alpha.Isolated || n.beta.Isolated {
		c.deny(ns.Name, n, "Takes the place of the annotation: the pods accept only what some policy allows.")
	}
}

// deny puts the policy that isolates a namespace into the output, once.
func (c *converter) deny(name string, n *namespace, comments ...string) {
	if n.denied {
		return
	}
	n.denied = true
	c.mustAdd(&networkingv1.NetworkPolicy{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingVersion, Kind: kindNetworkPolicy},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: name, Name: c.name(kindNetworkPolicy, name, denyName, "-all"),
		},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}},
	}, comments...)
}

// mustAdd is add for types that always convert.
func (c *converter) mustAdd(o runtime.Object, comments ...string) {
	if err := c.add(o, comments...); err != nil {
		panic(fmt.Sprintf("convert: %v", err)) // a Go type of the API that is no JSON object: cannot be
	}
}

// effective tells whether a policy has an effect in its namespace, and notes in the output if it has none. A namespace
// that is not in the input is taken for an isolated one: otherwise there would be nothing to convert.
func (c *converter) effective(namespaceName, what, annotation string, state func(*namespace) isolation.State) bool {
	n, ok := c.namespaces[namespaceName]
	if !ok {
		n = &namespace{alpha: isolation.State{Isolated: true}, beta: isolation.State{Isolated: true}}
		c.namespaces[namespaceName] = n
		c.deny(namespaceName, n, fmt.Sprintf(
			"The namespace %s is not in the input. This is right if its annotation %s isolates it; if not, the old "+
				"policies in it have no effect, and none of these are needed.", namespaceName, annotation))
	}
	if !state(n).Isolated {
		c.comment("%s has no effect and no equivalent: the annotation %s does not isolate the namespace %s, but "+
			"every policy of %s isolates the pods that it selects.", what, annotation, namespaceName, networkingVersion)
		return false
	}
	return true
}

func (c *converter) alpha(np *alpha.NetworkPolicy) {
	what := fmt.Sprintf("NetworkPolicy %s/%s of %s", np.Namespace, np.Name, alpha.GroupVersion)
	if !c.effective(np.Namespace, what, cluster.AnnotationIsolation,
		func(n *namespace) isolation.State { return n.alpha }) {
		return
	}
	out := c.ingressPolicy(&np.ObjectMeta, "-alpha")
	out.Spec.PodSelector = labelSelector(np.Spec.PodSelector)
	for i := range np.Spec.AllowIncoming {
		r := &np.Spec.AllowIncoming[i]
		var to networkingv1.NetworkPolicyIngressRule
		for _, p := range r.From {
			var peer networkingv1.NetworkPolicyPeer
			if p.Pods != nil {
				peer.PodSelector = new(labelSelector(p.Pods))
			} else {
				peer.NamespaceSelector = new(labelSelector(p.Namespaces))
			}
			to.From = append(to.From, peer)
		}
		for _, p := range r.ToPorts {
			to.Ports = append(to.Ports, networkingv1.NetworkPolicyPort{Protocol: protocol(p.Protocol), Port: p.Port})
		}
		out.Spec.Ingress = append(out.Spec.Ingress, to)
	}
	c.mustAdd(out, append(renamed(np.Name, out.Name), problems(np.Spec.Problems)...)...)
}

func (c *converter) beta(np *extensionsv1beta1.NetworkPolicy) {
	if field := beta.Later(&np.Spec); field != "" {
		out := beta.Modern(np)
		out.TypeMeta = metav1.TypeMeta{APIVersion: networkingVersion, Kind: kindNetworkPolicy}
		out.ObjectMeta = c.meta(kindNetworkPolicy, &np.ObjectMeta, "-beta")
		c.mustAdd(out, append(renamed(np.Name, out.Name), problems(beta.Compile(np).Rule.Problems)...)...)
		return
	}
	what := fmt.Sprintf("NetworkPolicy %s/%s of %s", np.Namespace, np.Name, extensionsv1beta1.SchemeGroupVersion)
	if !c.effective(np.Namespace, what, cluster.AnnotationNetworkPolicy,
		func(n *namespace) isolation.State { return n.beta }) {
		return
	}
	compiled := beta.Compile(np).Rule
	comments := problems(compiled.Problems)
	if _, err := rule.NewSelector(&np.Spec.PodSelector); err != nil {
		c.comment("%s: %s.", what, strings.Join(comments, " "))
		return
	}
	out := c.ingressPolicy(&np.ObjectMeta, "-beta")
	out.Spec.PodSelector = np.Spec.PodSelector
	for i := range compiled.Ingress.Rules {
		if r := &compiled.Ingress.Rules[i]; nobody(r) {
			comments = append(comments, fmt.Sprintf("No equivalent: spec.ingress[%d]: it allows nothing; left out", i))
			continue
		}
		out.Spec.Ingress = append(out.Spec.Ingress, modernRule(&np.Spec.Ingress[i]))
	}
	c.mustAdd(out, append(renamed(np.Name, out.Name), comments...)...)
}

// nobody tells whether a rule has a list that is there and empty.
func nobody(r *rule.Rule) bool {
	return r.Peers != nil && len(r.Peers) == 0 || r.Ports != nil && len(r.Ports) == 0
}

// modernRule rewrites a rule, without those entries that allow nothing.
func modernRule(r *extensionsv1beta1.NetworkPolicyIngressRule) networkingv1.NetworkPolicyIngressRule {
	var out networkingv1.NetworkPolicyIngressRule
	for _, p := range r.From {
		if understood(extensionsv1beta1.NetworkPolicyIngressRule{From: []extensionsv1beta1.NetworkPolicyPeer{p}}) {
			out.From = append(out.From, networkingv1.NetworkPolicyPeer{
				PodSelector: p.PodSelector, NamespaceSelector: p.NamespaceSelector,
			})
		}
	}
	for _, p := range r.Ports {
		if understood(extensionsv1beta1.NetworkPolicyIngressRule{Ports: []extensionsv1beta1.NetworkPolicyPort{p}}) {
			var name string
			if p.Protocol != nil {
				name = string(*p.Protocol)
			}
			out.Ports = append(out.Ports, networkingv1.NetworkPolicyPort{Protocol: protocol(name), Port: p.Port})
		}
	}
	return out
}

func understood(r extensionsv1beta1.NetworkPolicyIngressRule) bool {
	np := &extensionsv1beta1.NetworkPolicy{}
	np.Spec.Ingress = []extensionsv1beta1.NetworkPolicyIngressRule{r}
	return len(beta.Compile(np).Rule.Problems) == 0
}

func (c *converter) ingressPolicy(old *metav1.ObjectMeta, suffix string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: networkingVersion, Kind: kindNetworkPolicy},
		ObjectMeta: c.meta(kindNetworkPolicy, old, suffix),
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
}

func labelSelector(m map[string]string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: m}
}

// protocol writes a protocol as today's API wants it; absent ones are written out, so that the reader need not know.
func protocol(p string) *corev1.Protocol {
	if p == "" {
		return new(corev1.ProtocolTCP)
	}
	return new(corev1.Protocol(strings.ToUpper(p)))
}
