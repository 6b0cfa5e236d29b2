// Package alpha compiles the policies of Kubernetes 1.2 and 1.3: NetworkPolicy objects of the API group
// net.alpha.kubernetes.io/v1alpha1, which third parties defined as a ThirdPartyResource, and the annotation
// net.alpha.kubernetes.io/network-isolation of namespaces.
//
// No schema was ever published. The rules here are those of the announcement of March 2016 and of the proposal that
// its implementations followed (kubernetes/docs/proposals/network-policy.md in its first version). An object is read
// leniently, since no API server has checked it, and never as more than it says: what cannot be understood allows
// nothing and is reported.
package alpha

import (
	"encoding/json"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// GroupVersion is that of the objects.
var GroupVersion = schema.GroupVersion{Group: "net.alpha.kubernetes.io", Version: "v1alpha1"}

// Resource is the name of the objects' resource. The plural is the one that ThirdPartyResource formed.
const Resource = "networkpolicys"

// Kind is the name of the objects' kind.
const Kind = "NetworkPolicy"

// ThirdPartyResource is the kind, of extensions/v1beta1, by which clusters of that time defined the resource.
const ThirdPartyResource = "ThirdPartyResource"

// ExplainThirdParty says in one sentence what became of a ThirdPartyResource, for those who find one in a manifest.
func ExplainThirdParty(name string) string {
	text := "API servers have had no ThirdPartyResource since Kubernetes 1.8, and manifests need none"
	if name == thirdPartyName {
		return text + ": the objects that it defines are understood as they are, and a cluster takes them once it has the " +
			"CustomResourceDefinition " + Resource + "." + GroupVersion.Group
	}
	return text
}

// thirdPartyName is that of the announcement.
const thirdPartyName = "network-policy.net.alpha.kubernetes.io"

// Bare tells whether an object of kind NetworkPolicy that names no apiVersion is one of this dialect. The announcement
// wrote them so, because the path they were posted to named it. What gives them away is spec.allowIncoming, which no
// other dialect has.
func Bare(object []byte) bool {
	var o struct {
		Spec map[string]json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(object, &o); err != nil {
		return false
	}
	_, ok := o.Spec["allowIncoming"]
	return ok
}

// AddToScheme registers the types of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &NetworkPolicy{}, &NetworkPolicyList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// NetworkPolicy allows connections to pods of its namespace while that is isolated.
type NetworkPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec Spec `json:"spec"`
}

// NetworkPolicyList is a list of NetworkPolicy objects.
type NetworkPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []NetworkPolicy `json:"items"`
}

// Spec is what is left of an object's spec once everything that could not be understood was left out: see
// Spec.UnmarshalJSON.
type Spec struct {
	// PodSelector selects pods of the policy's namespace by their labels; all of them if it is empty or absent.
	PodSelector map[string]string `json:"podSelector,omitempty"`
	// AllowIncoming lists what is allowed; nothing if it is empty or absent. Objects have one Rule or a list here.
	AllowIncoming []Rule `json:"allowIncoming,omitempty"`
	// Problems are what was left out.
	Problems []rule.Problem `json:"-"`
}

// Rule allows what matches both lists.
type Rule struct {
	// From lists sources; everyone if it is empty or absent.
	From []Peer `json:"from,omitempty"`
	// ToPorts lists destination ports; all ports of all protocols if it is empty or absent.
	ToPorts []Port `json:"toPorts,omitempty"`
}

// Peer is one source; exactly one of the fields is not nil.
type Peer struct {
	// Pods selects pods in the policy's own namespace by their labels; all of them if it is empty.
	Pods map[string]string `json:"pods,omitzero"`
	// Namespaces selects all pods of the namespaces that have these labels; those of every namespace if it is empty.
	Namespaces map[string]string `json:"namespaces,omitzero"`
}

// Port is one destination port.
type Port struct {
	// Port is a number, or the name of a container port; every port of the protocol if it is absent.
	Port *intstr.IntOrString `json:"port,omitempty"`
	// Protocol is TCP, UDP or SCTP in any case; TCP if it is empty.
	Protocol string `json:"protocol,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (p *NetworkPolicy) DeepCopyObject() runtime.Object { return p.DeepCopy() }

// DeepCopy copies the object.
func (p *NetworkPolicy) DeepCopy() *NetworkPolicy {
	if p == nil {
		return nil
	}
	out := &NetworkPolicy{TypeMeta: p.TypeMeta}
	p.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.PodSelector = maps.Clone(p.Spec.PodSelector)
	out.Spec.Problems = slices.Clone(p.Spec.Problems)
	out.Spec.AllowIncoming = slices.Clone(p.Spec.AllowIncoming)
	for i := range out.Spec.AllowIncoming {
		r := &out.Spec.AllowIncoming[i]
		r.From = slices.Clone(r.From)
		for j := range r.From {
			r.From[j].Pods = maps.Clone(r.From[j].Pods)
			r.From[j].Namespaces = maps.Clone(r.From[j].Namespaces)
		}
		r.ToPorts = slices.Clone(r.ToPorts)
		for j := range r.ToPorts {
			if port := r.ToPorts[j].Port; port != nil {
				r.ToPorts[j].Port = new(*port)
			}
		}
	}
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *NetworkPolicyList) DeepCopyObject() runtime.Object {
	if l == nil {
		return (*NetworkPolicyList)(nil)
	}
	out := &NetworkPolicyList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	if l.Items != nil {
		out.Items = make([]NetworkPolicy, len(l.Items))
		for i := range l.Items {
			out.Items[i] = *l.Items[i].DeepCopy()
		}
	}
	return out
}
