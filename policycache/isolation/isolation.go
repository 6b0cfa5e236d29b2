// Package isolation puts policies of the dialects in force that isolate a namespace by an annotation on it.
//
// In the two oldest dialects a policy object only allows. Whether there is anything to allow is said by the namespace:
// while it is isolated, each of its pods accepts what some policy allows and nothing else; while it is not, everything
// passes, policies or not. A Set joins both sides and gives policies that mean the same without looking at namespaces:
// one that isolates the namespace, and the objects' own, which say nothing at all as long as it is not isolated.
package isolation

import (
	"cmp"
	"slices"
	"strings"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Policy is a compiled policy object. It is immutable.
type Policy struct {
	// Rule is the policy as it is in force while its namespace is isolated. Its Ref has the namespace.
	Rule *rule.Policy
	// Standalone policies are in force whether the namespace is isolated or not.
	Standalone bool
}

// State is what the annotation of a namespace says. It is comparable.
type State struct {
	Isolated bool
	// Problem says what could not be understood of the annotation's value; empty if all is well.
	Problem string
	// Idle, if set, is reported as a problem of each policy that has no effect because the namespace is not isolated.
	Idle string
}

// Changes is what is to be done to the engine's policies, in any order.
type Changes struct {
	Set     []*rule.Policy
	Deleted []rule.Ref
}

// Config is fixed for the life of a Set.
type Config struct {
	Dialect rule.Dialect
	// Annotation is the key of the namespaces' annotation. Policies that isolate a namespace are named after it; no
	// object can have that name, because of the slash in it.
	Annotation string
	// Read interprets a namespace. A namespace that is not known is one without annotations.
	Read func(*cluster.Namespace) State
}

// Set joins namespaces and policies of one dialect. It is for one goroutine. Its methods return what changed by them:
// nothing, for a namespace whose labels or other annotations changed.
type Set struct {
	cfg        Config
	namespaces map[string]*namespace
}

type namespace struct {
	known    bool
	state    State
	policies map[string]*Policy // by name
}

// NewSet makes an empty set.
func NewSet(cfg Config) *Set { return &Set{cfg: cfg, namespaces: make(map[string]*namespace)} }

// SetNamespace takes over a new or changed namespace.
func (s *Set) SetNamespace(ns *cluster.Namespace) Changes {
	n := s.namespace(ns.Name)
	n.known = true
	return s.turn(ns.Name, n, s.cfg.Read(ns))
}

// DeleteNamespace forgets a namespace. Policies that still lie in it have no effect from here on.
func (s *Set) DeleteNamespace(name string) Changes {
	n := s.namespaces[name]
	if n == nil {
		return Changes{}
	}
	n.known = false
	changes := s.turn(name, n, s.cfg.Read(cluster.UnknownNamespace(name)))
	s.forget(name, n)
	return changes
}

// SetPolicy takes over a new or changed policy.
func (s *Set) SetPolicy(p *Policy) Changes {
	n := s.namespace(p.Rule.Ref.Namespace)
	n.policies[p.Rule.Ref.Name] = p
	return Changes{Set: []*rule.Policy{n.inForce(p)}}
}

// DeletePolicy forgets a policy.
func (s *Set) DeletePolicy(ref rule.Ref) Changes {
	n := s.namespaces[ref.Namespace]
	if n == nil || n.policies[ref.Name] == nil {
		return Changes{}
	}
	delete(n.policies, ref.Name)
	s.forget(ref.Namespace, n)
	return Changes{Deleted: []rule.Ref{ref}}
}

func (s *Set) namespace(name string) *namespace {
	n := s.namespaces[name]
	if n == nil {
		n = &namespace{
			state:    s.cfg.Read(cluster.UnknownNamespace(name)),
			policies: make(map[string]*Policy),
		}
		s.namespaces[name] = n
	}
	return n
}

func (s *Set) forget(name string, n *namespace) {
	if !n.known && len(n.policies) == 0 {
		delete(s.namespaces, name)
	}
}

// turn changes the state of a namespace.
func (s *Set) turn(name string, n *namespace, to State) (changes Changes) {
	from := n.state
	n.state = to
	isolating := rule.Ref{Dialect: s.cfg.Dialect, Namespace: name, Name: s.cfg.Annotation}
	switch {
	case to.Isolated && (!from.Isolated || from.Problem != to.Problem):
		p := &rule.Policy{
			Ref: isolating, Tier: rule.Namespaced,
			Subject: rule.Subject{Namespace: name},
			Ingress: &rule.Direction{},
		}
		if to.Problem != "" {
			field := "metadata.annotations[" + s.cfg.Annotation + "]"
			p.Problems = []rule.Problem{{Field: field, Text: to.Problem}}
		}
		changes.Set = append(changes.Set, p)
	case from.Isolated && !to.Isolated:
		changes.Deleted = append(changes.Deleted, isolating)
	}
	if from.Isolated == to.Isolated && from.Idle == to.Idle {
		return changes
	}
	own := len(changes.Set)
	for _, p := range n.policies {
		if !p.Standalone {
			changes.Set = append(changes.Set, n.inForce(p))
		}
	}
	slices.SortFunc(changes.Set[own:], func(a, b *rule.Policy) int {
		return cmp.Or(strings.Compare(a.Ref.Namespace, b.Ref.Namespace), strings.Compare(a.Ref.Name, b.Ref.Name))
	})
	return changes
}

// inForce is what a policy comes to in the namespace's present state.
func (n *namespace) inForce(p *Policy) *rule.Policy {
	if p.Standalone || n.state.Isolated {
		return p.Rule
	}
	idle := *p.Rule
	idle.Ingress, idle.Egress = nil, nil
	if n.state.Idle != "" {
		idle.Problems = append(slices.Clip(idle.Problems), rule.Problem{Field: "metadata.namespace", Text: n.state.Idle})
	}
	return &idle
}
