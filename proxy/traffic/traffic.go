// Package traffic sums up who talks to whom: what agents admitted and what they refused, between workloads instead of
// single pods, and what each policy had to do with it.
package traffic

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Path is where an agent serves its Graph as JSON.
const Path = "/traffic"

// Graph is who talked to whom, by the agents of one or more nodes.
type Graph struct {
	// Edges are sorted by their parties, port and verdict.
	Edges []Edge `json:"edges"`
	// Policies are sorted by name.
	Policies []Policy `json:"policies"`
	// LeftOut counts tuples and lines of the flow log that belong to edges for which there was no room.
	LeftOut int `json:"leftOut,omitempty"`
}

// Edge says what became of connections from one party to a port of another.
type Edge struct {
	From Party `json:"from"`
	To   Party `json:"to"`
	// Port is 80/TCP, ICMP, or the like.
	Port string `json:"port"`
	// Verdict is allow, deny, would-deny or would-allow.
	Verdict string `json:"verdict"`
	// Count is, for allow, the number of tuples (source address, destination address and port) that kernels admit
	// without asking; for the others the number of packets since the agent started. Agents of both ends count: a
	// connection between two nodes may be judged on each.
	Count uint64 `json:"count"`
	// Last is when the last such packet came, zero for allow: the kernel does not tell.
	Last time.Time `json:"last,omitzero"`
}

// Party is one end of an edge: a workload, a node, or an address outside of the cluster.
type Party struct {
	// Namespace is empty for what is no pod.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// Policy is what one policy had to do with the graph.
type Policy struct {
	// Name is Dialect/namespace/name, the way the flow log writes it.
	Name string `json:"name"`
	// Admits is the number of tuples that a rule of the policy admits.
	Admits uint64 `json:"admits"`
	// Denied is the number of refused packets that the policy had a part in, Would those that it would deny or allow if
	// it were not in audit mode.
	Denied uint64 `json:"denied"`
	Would  uint64 `json:"would,omitempty"`
}

// MaxEdges bounds the edges of a graph.
const MaxEdges = 1000

// edgeKey is what edges are summed up by.
type edgeKey struct {
	from, to      Party
	port, verdict string
}

func (k edgeKey) compare(o edgeKey) int {
	return cmp.Or(k.from.compare(o.from), k.to.compare(o.to), strings.Compare(k.port, o.port),
		strings.Compare(k.verdict, o.verdict))
}

func (p Party) compare(o Party) int {
	return cmp.Or(strings.Compare(p.Namespace, o.Namespace), strings.Compare(p.Name, o.Name))
}

type total struct {
	count uint64
	last  time.Time
}

// Sum builds a Graph. Its zero value is an empty one; it is for one goroutine at a time.
type Sum struct {
	edges    map[edgeKey]total
	policies map[string]Policy
	leftOut  int
}

// add counts an edge, unless it is one too many.
func (s *Sum) add(k edgeKey, t total) {
	if s.edges == nil {
		s.edges = map[edgeKey]total{}
	}
	old, known := s.edges[k]
	if !known && len(s.edges) >= MaxEdges {
		s.leftOut++
		return
	}
	old.count += t.count
	if t.last.After(old.last) {
		old.last = t.last
	}
	s.edges[k] = old
}

// policy adds to the counts of a policy.
func (s *Sum) policy(name string, admits, denied, would uint64) {
	if s.policies == nil {
		s.policies = map[string]Policy{}
	}
	p := s.policies[name]
	p.Name = name
	p.Admits += admits
	p.Denied += denied
	p.Would += would
	s.policies[name] = p
}

// Admitted counts a tuple that the kernel admits, by rules of the policies.
func (s *Sum) Admitted(from, to Party, port string, policies []string) {
	s.add(edgeKey{from, to, port, Allow}, total{count: 1})
	for _, name := range policies {
		s.policy(name, 1, 0, 0)
	}
}

// Verdicts of edges, the words of the flow log.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Add counts what another agent saw.
func (s *Sum) Add(g Graph) {
	for _, e := range g.Edges {
		s.add(edgeKey{e.From, e.To, e.Port, e.Verdict}, total{e.Count, e.Last})
	}
	for _, p := range g.Policies {
		s.policy(p.Name, p.Admits, p.Denied, p.Would)
	}
	s.leftOut += g.LeftOut
}

// Graph is the sum so far.
func (s *Sum) Graph() Graph {
	g := Graph{Edges: make([]Edge, 0, len(s.edges)), Policies: make([]Policy, 0, len(s.policies)), LeftOut: s.leftOut}
	for _, k := range slices.SortedFunc(maps.Keys(s.edges), edgeKey.compare) {
		t := s.edges[k]
		g.Edges = append(g.Edges, Edge{
			From: k.from, To: k.to, Port: k.port, Verdict: k.verdict, Count: t.count, Last: t.last,
		})
	}
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		g.Policies = append(g.Policies, s.policies[name])
	}
	return g
}
