// Package state adds up the changes of all kinds of objects to one picture of a cluster: whose address is whose, and
// which policies, of every dialect, are in force.
//
// It is what the agent enforces from, and what explaining, drawing a matrix and testing look at: one code path from
// objects to verdicts.
package state

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// State is the mutable picture. It is for one goroutine; the snapshots that it gives are for everyone.
type State struct {
	// Index knows whose address is whose.
	Index *endpoint.Index

	node  string
	model *engine.Model
	// legacy joins the namespaces' annotations and the objects of the two oldest dialects.
	legacy   map[rule.Dialect]*isolation.Set
	policies map[rule.Ref]*rule.Policy
	problems map[rule.Ref][]rule.Problem
	census   Census
	cidrs    []netip.Prefix
}

// New makes an empty state whose subjects are the pods of the node; of all nodes if node is empty.
func New(node string) *State { return NewWith(engine.Config{Node: node}) }

// NewWith is New for an engine that is configured otherwise.
func NewWith(cfg engine.Config) *State {
	return &State{
		Index: endpoint.NewIndex(), node: cfg.Node, model: engine.NewModel(cfg),
		legacy: map[rule.Dialect]*isolation.Set{
			rule.AlphaNetworkPolicy: alpha.NewSet(), rule.BetaNetworkPolicy: beta.NewSet(),
		},
		policies: map[rule.Ref]*rule.Policy{}, problems: map[rule.Ref][]rule.Problem{}, census: Census{},
	}
}

// Apply takes over changes and returns the snapshot that contains them. The delta is nil if no verdict can differ from
// the last snapshot's.
func (s *State) Apply(changes []source.Change) (*engine.Snapshot, *engine.Delta) {
	for _, c := range changes {
		if c.Object == nil {
			s.remove(c.Kind, c.Key)
		} else {
			s.set(c.Object)
		}
	}
	s.model.ApplyEndpoints(s.Index.Flush())
	s.model.SetPodCIDRs(s.Index.PodCIDRs(), s.PodCIDRs())
	return s.model.Commit()
}

// Learn takes over an answer of a DNS server that the pod with the address was given, which holds until then.
func (s *State) Learn(pod netip.Addr, a domain.Answer, until time.Time) { s.model.Learn(pod, a, until) }

// Lapse ends names whose time is over, and returns the snapshot that contains this and everything learned. The delta is
// nil if no verdict can differ from the last snapshot's.
func (s *State) Lapse(now time.Time) (*engine.Snapshot, *engine.Delta) {
	s.model.Lapse(now)
	return s.model.Commit()
}

// Recall takes over all that an earlier State gave to keep; nothing that was learned until now ends after latest. Lapse
// brings it into the next snapshot. See engine.Model.
func (s *State) Recall(kept []engine.Fact, latest time.Time) { s.model.Recall(kept, latest) }

// TakeFacts tells what of the learned has to be kept since the last call, and what has not any more.
func (s *State) TakeFacts() (come, gone []engine.Fact) { return s.model.TakeFacts() }

// Facts is all that has to be kept.
func (s *State) Facts() []engine.Fact { return s.model.Facts() }

// Names is how many addresses the pods have learned under names, by namespace/name. Pods that have learned none are not
// in it.
func (s *State) Names() map[string]int { return s.model.Names() }

func (s *State) set(object any) {
	switch o := object.(type) {
	case *cluster.Pod:
		s.Index.SetPod(o)
	case *cluster.Node:
		s.Index.SetNode(o)
	case *cluster.Namespace:
		s.Index.SetNamespace(o)
		for _, set := range s.legacy {
			s.carry(set.SetNamespace(o))
		}
	case *rule.Policy:
		s.setPolicy(o)
	case *isolation.Policy:
		s.carry(s.legacy[o.Rule.Ref.Dialect].SetPolicy(o))
	default:
		panic(fmt.Sprintf("state: no kind makes a %T", object)) // Kinds and this switch belong together
	}
}

func (s *State) remove(kind, key string) {
	switch kind {
	case source.KindPod:
		s.Index.DeletePod(key)
	case source.KindNode:
		s.Index.DeleteNode(key)
	case source.KindNamespace:
		s.Index.DeleteNamespace(key)
		for _, set := range s.legacy {
			s.carry(set.DeleteNamespace(key))
		}
	default:
		ref := refOf(kind, key)
		if set := s.legacy[ref.Dialect]; set != nil {
			s.carry(set.DeletePolicy(ref))
			return
		}
		s.deletePolicy(ref)
	}
}

func (s *State) carry(c isolation.Changes) {
	for _, p := range c.Set {
		s.setPolicy(p)
	}
	for _, ref := range c.Deleted {
		s.deletePolicy(ref)
	}
}

func (s *State) setPolicy(p *rule.Policy) {
	s.census.replace(s.policies[p.Ref], p)
	s.policies[p.Ref] = p
	s.model.SetPolicy(p)
	if len(p.Problems) > 0 {
		s.problems[p.Ref] = p.Problems
	} else {
		delete(s.problems, p.Ref)
	}
}

func (s *State) deletePolicy(ref rule.Ref) {
	s.census.replace(s.policies[ref], nil)
	delete(s.policies, ref)
	delete(s.problems, ref)
	s.model.DeletePolicy(ref)
}

// PodCIDRs are those of the node, or of all nodes. Should the node's object vanish, its last known ones stay: an
// address inside them is still an address of a local pod.
func (s *State) PodCIDRs() []netip.Prefix {
	if s.node == "" {
		return s.Index.PodCIDRs()
	}
	if n, ok := s.Index.Node(s.node); ok {
		s.cidrs = n.PodCIDRs
	}
	return s.cidrs
}

// CheckNode returns an error if the cluster does not have the node.
func (s *State) CheckNode() error {
	if _, ok := s.Index.Node(s.node); ok || s.node == "" {
		return nil
	}
	return fmt.Errorf("the cluster has no node named %q among its %d; give the name that 'kubectl get nodes' lists",
		s.node, s.Index.Counts().Nodes)
}

// Policies are those in force, of all dialects, by name. The map is the state's own and must not be changed.
func (s *State) Policies() map[rule.Ref]*rule.Policy { return s.policies }

// Census counts the policies in force. It is a copy.
func (s *State) Census() Census { return maps.Clone(s.census) }

// Problems says what could not be understood of which policy; such a policy fails closed. The map is a copy.
func (s *State) Problems() map[rule.Ref][]rule.Problem { return maps.Clone(s.problems) }
