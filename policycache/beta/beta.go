// Package beta compiles NetworkPolicy objects of extensions/v1beta1 as Kubernetes 1.3 to 1.6 understood them, with the
// annotation net.beta.kubernetes.io/network-policy of namespaces.
//
// The rules are those of the API documentation of those versions (k8s.io/kubernetes v1.6, pkg/apis/extensions/v1beta1).
// They differ from those of networking.k8s.io/v1 in that a policy isolates nothing, the namespace's annotation does,
// and in that lists that are present and empty match nothing.
//
// The same API version lived on until 1.15 with the meaning of networking.k8s.io/v1. An object with a field that came
// in 1.8 (policyTypes, egress, ipBlock) or in networking.k8s.io/v1 later can only be meant so, and is compiled so.
package beta

import (
	"fmt"

	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Ref gives the name under which the policy is known to the engine.
func Ref(namespace, name string) rule.Ref {
	return rule.Ref{Dialect: rule.BetaNetworkPolicy, Namespace: namespace, Name: name}
}

// NewSet makes the set that joins policies of this dialect with the namespaces' annotation.
func NewSet() *isolation.Set {
	return isolation.NewSet(isolation.Config{
		Dialect:    rule.BetaNetworkPolicy,
		Annotation: cluster.AnnotationNetworkPolicy,
		Read:       Read,
	})
}

// annotation is the value of the namespaces' annotation (k8s.io/kubernetes v1.3, NamespaceNetworkPolicy).
type annotation struct {
	Ingress *struct {
		Isolation *string `json:"isolation"`
	} `json:"ingress"`
}

// defaultDeny is the one value of isolation that there is.
const defaultDeny = "DefaultDeny"

// Read tells whether a namespace is isolated: its annotation is a JSON object whose ingress.isolation is DefaultDeny,
// and absent for no isolation. Any other value of isolation, and anything that is not such an object, is reported and
// isolates: whoever set the annotation cared for isolation.
func Read(ns *cluster.Namespace) isolation.State {
	if ns.NetworkPolicy == "" {
		return isolation.State{Idle: "the policy has no effect, because the namespace does not have the annotation " +
			cluster.AnnotationNetworkPolicy + "; policies of networking.k8s.io/v1 need none"}
	}
	var a annotation
	if err := json.Unmarshal([]byte(ns.NetworkPolicy), &a); err != nil {
		return isolation.State{Isolated: true, Problem: fmt.Sprintf("%v; the namespace is isolated", err)}
	}
	switch {
	case a.Ingress == nil || a.Ingress.Isolation == nil:
		return isolation.State{}
	case *a.Ingress.Isolation == defaultDeny:
		return isolation.State{Isolated: true}
	}
	return isolation.State{Isolated: true, Problem: fmt.Sprintf(
		"isolation %q is not %s; the namespace is isolated", *a.Ingress.Isolation, defaultDeny)}
}

// Compile never fails: what cannot be understood is in the result's Problems. The result shares no memory with np.
func Compile(np *extensionsv1beta1.NetworkPolicy) *isolation.Policy {
	if Later(&np.Spec) != "" {
		return compileLater(np)
	}
	c := compiler{namespace: np.Namespace}
	p := &rule.Policy{
		Ref:     Ref(np.Namespace, np.Name),
		Tier:    rule.Namespaced,
		Subject: rule.Subject{Namespace: np.Namespace},
		Ingress: &rule.Direction{},
	}
	pods, err := rule.NewSelector(&np.Spec.PodSelector)
	p.Subject.Pods = pods
	if err != nil {
		c.problem("spec.podSelector", "%v; the policy allows nothing", err)
	} else {
		for i := range np.Spec.Ingress {
			r := c.rule(fmt.Sprintf("spec.ingress[%d]", i), &np.Spec.Ingress[i])
			p.Ingress.Rules = append(p.Ingress.Rules, r)
		}
	}
	p.Problems = c.problems
	p.SetObject(np)
	return &isolation.Policy{Rule: p}
}
