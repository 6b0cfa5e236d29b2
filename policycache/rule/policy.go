// Package rule is the form that every policy dialect compiles to.
//
// A Policy selects subjects and says, for each direction it covers, an ordered list of rules. Three tiers exist; a
// connection is judged by Admin first, then NetworkPolicy, then Baseline (sigs.k8s.io/network-policy-api,
// ClusterNetworkPolicySpec.Tier). The namespaced NetworkPolicy and its predecessors fill the middle tier, in which
// rules only accept and a policy that covers a direction isolates its subjects in it.
//
// Everything is resolved as far as it can be without knowing the cluster: selectors are parsed, prefixes masked,
// defaults filled in. What could not be understood is kept as a Problem, and the policy is built so that it fails
// closed for the pods it selects: its translator takes care of that, the engine need not know.
package rule

import (
	"cmp"
	"fmt"
	"strings"
)

// Dialect is the API that a policy was written in.
type Dialect uint8

// The dialects, in the order in which policies of one tier and priority are listed.
const (
	// NetworkPolicy is networking.k8s.io/v1.
	NetworkPolicy Dialect = iota + 1
	// ClusterNetworkPolicy is policy.networking.k8s.io/v1alpha2.
	ClusterNetworkPolicy
	// AdminNetworkPolicy is policy.networking.k8s.io/v1alpha1.
	AdminNetworkPolicy
	// BaselineAdminNetworkPolicy is policy.networking.k8s.io/v1alpha1.
	BaselineAdminNetworkPolicy
	// BetaNetworkPolicy is extensions/v1beta1 with the namespace's isolation annotation.
	BetaNetworkPolicy
	// AlphaNetworkPolicy is net.alpha.kubernetes.io/v1alpha1 with the namespace's isolation annotation.
	AlphaNetworkPolicy
)

var dialects = [...]string{
	NetworkPolicy:              "NetworkPolicy",
	ClusterNetworkPolicy:       "ClusterNetworkPolicy",
	AdminNetworkPolicy:         "AdminNetworkPolicy",
	BaselineAdminNetworkPolicy: "BaselineAdminNetworkPolicy",
	BetaNetworkPolicy:          "NetworkPolicy.v1beta1",
	AlphaNetworkPolicy:         "NetworkPolicy.v1alpha1",
}

func (d Dialect) String() string { return name(dialects[:], int(d), "dialect") }

// MarshalText makes dialects readable in JSON.
func (d Dialect) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Ref names a policy object. It is comparable and unique among all dialects.
type Ref struct {
	Dialect Dialect `json:"dialect"`
	// Namespace is empty for cluster-scoped objects.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String prints Dialect/namespace/name, without the namespace where there is none.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Dialect.String() + "/" + r.Name
	}
	return r.Dialect.String() + "/" + r.Namespace + "/" + r.Name
}

// Tier groups policies; a tier is judged only where those before it left the connection undecided.
type Tier uint8

// The tiers in the order of evaluation. The zero Tier stands for no tier.
const (
	Admin Tier = iota + 1
	Namespaced
	Baseline
)

var tiers = [...]string{Admin: "admin", Namespaced: "networkpolicy", Baseline: "baseline"}

func (t Tier) String() string { return name(tiers[:], int(t), "tier") }

// MarshalText makes tiers readable in JSON.
func (t Tier) MarshalText() ([]byte, error) {
	if t == 0 {
		return nil, nil
	}
	return []byte(t.String()), nil
}

// Action is what a rule does with the connections it matches.
type Action uint8

const (
	// Accept allows the connection for good. It is the only action of the NetworkPolicy tier.
	Accept Action = iota
	// Deny refuses the connection for good.
	Deny
	// Pass leaves the connection to the next tier.
	Pass
)

var actions = [...]string{Accept: "accept", Deny: "deny", Pass: "pass"}

func (a Action) String() string { return name(actions[:], int(a), "action") }

// MarshalText makes actions readable in JSON.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Policy is one compiled policy object. It is immutable once it was handed to the engine.
type Policy struct {
	Ref  Ref
	Tier Tier
	// Priority orders the policies of the Admin and Baseline tiers, lower first; 0 in the NetworkPolicy tier, where
	// order has no meaning.
	Priority int32
	Subject  Subject
	// Ingress and Egress are nil where the policy says nothing of that direction. In the NetworkPolicy tier a
	// direction that is not nil isolates the subjects, whatever rules it has.
	Ingress, Egress *Direction
	// Audit policies are evaluated, and what they would change is told; they are not enforced.
	Audit bool
	// Problems are the parts that could not be understood. The policy is in force all the same, failing closed.
	Problems []Problem
	// Object is what the policy was made of; zero where that is no object, and for manifests.
	Object Object
}

// Object tells a version of an object from all others.
type Object struct {
	UID string
	// Generation is that of the object's spec (metadata.generation).
	Generation int64
}

// Direction is the list of a policy's rules for connections to (Ingress) or from (Egress) its subjects. The first
// rule that matches counts.
type Direction struct{ Rules []Rule }

// Rule matches connections by the peer and by the destination port.
type Rule struct {
	// Name is the rule's own name, in the dialects that have one.
	Name   string
	Action Action
	// Peers lists who may be on the other side: nil is everyone, inside and outside of the cluster; an empty list
	// that is not nil is nobody.
	Peers []Peer
	// Ports lists destination ports: nil is every protocol and port, ICMP included; an empty list that is not nil
	// is none. A rule with ports matches only packets whose ports are known.
	Ports []Port
}

// Subject selects the pods that a policy is about. Host-network pods are never among them.
type Subject struct {
	// Namespace is the only namespace with subjects, unless Namespaces is set.
	Namespace string
	// Namespaces, if not nil, selects the namespaces by label.
	Namespaces *Selector
	// Pods selects pods in those namespaces by label.
	Pods Selector
}

// Problem is a part of a policy object that could not be understood.
type Problem struct {
	// Field is the path in the object: spec.ingress[0].from[1].ipBlock.cidr.
	Field string `json:"field"`
	// Text says what is wrong and what is done about it.
	Text string `json:"text"`
}

func (p Problem) String() string { return p.Field + ": " + p.Text }

// Compare orders policies as they are evaluated: by tier, by priority, and then by name. The API leaves open which
// of two policies with the same tier and priority counts; the order of names makes the answer the same on each node.
func Compare(a, b *Policy) int {
	return cmp.Or(
		cmp.Compare(a.Tier, b.Tier),
		cmp.Compare(a.Priority, b.Priority),
		cmp.Compare(a.Ref.Dialect, b.Ref.Dialect),
		strings.Compare(a.Ref.Namespace, b.Ref.Namespace),
		strings.Compare(a.Ref.Name, b.Ref.Name),
	)
}

func name(names []string, i int, kind string) string {
	if i < len(names) && names[i] != "" {
		return names[i]
	}
	return fmt.Sprintf("%s(%d)", kind, i)
}
