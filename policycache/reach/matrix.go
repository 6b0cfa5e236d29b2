package reach

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// Group is one row and column of a matrix: pods, nodes, or an address outside of the cluster.
type Group struct {
	Name string `json:"name"`
	// Pods counts the addresses of pods in the group, Nodes those of nodes.
	Pods  int `json:"pods"`
	Nodes int `json:"nodes,omitempty"`

	kind    identity.Kind // of all members; zero stands for pods
	selects func(*endpoint.Endpoint) bool
	address netip.Addr
	classes []*class
}

// Namespaces makes a group of each namespace that has pods with addresses.
func Namespaces(w World) []Group {
	names := map[string]bool{}
	for _, ep := range w.Snapshot.Endpoints() {
		if ep.Kind == identity.Pod {
			names[ep.Namespace] = true
		}
	}
	var groups []Group
	for name := range names {
		groups = append(groups, Group{Name: name, selects: func(ep *endpoint.Endpoint) bool { return ep.Namespace == name }})
	}
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return groups
}

// Workloads makes a group of each set of pods with equal labels in the namespace, named after its first pod.
func Workloads(w World, namespace string) []Group {
	pods := map[identity.Handle][]string{}
	for _, ep := range w.Snapshot.Endpoints() {
		if ep.Kind == identity.Pod && ep.Namespace == namespace && !slices.Contains(pods[ep.Identity], ep.Name) {
			pods[ep.Identity] = append(pods[ep.Identity], ep.Name)
		}
	}
	var groups []Group
	for id, names := range pods {
		slices.Sort(names)
		name := namespace + "/" + names[0]
		if len(names) > 1 {
			name = fmt.Sprintf("%s (+%d)", name, len(names)-1)
		}
		groups = append(groups, Group{Name: name, selects: func(ep *endpoint.Endpoint) bool { return ep.Identity == id }})
	}
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return groups
}

// Selection makes a group of the pods that a label selector, written as kubectl takes it, matches: in one namespace, or
// in all if namespace is empty.
func Selection(selector, namespace string) (Group, error) {
	sel, err := labels.Parse(selector)
	if err != nil {
		return Group{}, fmt.Errorf("selector %q: %w", selector, err)
	}
	return Group{Name: selector, selects: func(ep *endpoint.Endpoint) bool {
		id := ep.Identity.Identity()
		return (namespace == "" || ep.Namespace == namespace) && sel.Matches(labels.Set(id.Labels.Map()))
	}}, nil
}

// Nodes makes a group of all nodes, and so of the pods on the host network: they have their node's addresses. A node
// and its own pods always reach each other, so they are no pair of any cell.
func Nodes() Group {
	return Group{Name: "nodes", kind: identity.Node, selects: func(*endpoint.Endpoint) bool { return true }}
}

// Address makes a group of one address outside of the cluster.
func Address(a netip.Addr) Group { return Group{Name: a.String(), address: a} }

// Matrix says which groups reach which.
type Matrix struct {
	Groups []Group `json:"groups"`
	// Ports are those that were asked for; empty if all were.
	Ports []Span `json:"ports,omitempty"`
	// Cells has a row for each group as the source, in which each group is a destination.
	Cells [][]Cell `json:"cells"`
}

// Cell is one group's reach into another.
type Cell struct {
	// Pairs counts pairs of addresses of one family, without those of an address and itself.
	Pairs int `json:"pairs"`
	// Reach has the ports at which any pair is allowed, in order.
	Reach []Reach `json:"reach,omitempty"`
}

// Reach is a range of ports and how many of the cell's pairs it is open to.
type Reach struct {
	Ports   Span `json:"ports"`
	Allowed int  `json:"allowed"`
}

// Options choose what a matrix shows.
type Options struct {
	Groups []Group
	// Ports are those to ask for, one number each; empty means all.
	Ports    []Span
	Progress Progress
}

// pairCache is how many compiled pairs are kept while many questions are asked.
const pairCache = 1 << 16

// NewMatrix asks for every pair of groups.
func NewMatrix(w World, opts Options) *Matrix {
	worlds := []World{w}
	all := classes(worlds, nil)
	m := &Matrix{Groups: slices.Clone(opts.Groups), Ports: slices.Clone(opts.Ports)}
	slices.SortFunc(m.Ports, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First))
	})
	m.Ports = slices.Compact(m.Ports)
	for i := range m.Groups {
		m.Groups[i].fill(all)
	}
	spans := m.Ports
	if len(spans) == 0 {
		spans = distinct(worlds)
	}
	ev := engine.NewEvaluator(pairCache)
	total := len(m.Groups) * len(m.Groups)
	m.Cells = make([][]Cell, len(m.Groups))
	for i := range m.Groups {
		m.Cells[i] = make([]Cell, len(m.Groups))
		for j := range m.Groups {
			m.Cells[i][j] = cell(ev, w.Snapshot, &m.Groups[i], &m.Groups[j], spans)
			opts.Progress.tell(i*len(m.Groups)+j+1, total)
		}
	}
	return m
}

func (g *Group) fill(all []*class) {
	if g.address.IsValid() {
		g.classes = []*class{{members: []member{{addr: g.address}}}}
		return
	}
	for _, c := range all {
		if c.kind() != cmp.Or(g.kind, identity.Pod) || !g.selects(c.members[0].ep) {
			continue
		}
		g.classes = append(g.classes, c)
		if g.kind == identity.Node {
			g.Nodes += len(c.members)
		} else {
			g.Pods += len(c.members)
		}
	}
}

func cell(ev *engine.Evaluator, s *engine.Snapshot, from, to *Group, spans []Span) Cell {
	var c Cell
	allowed := make([]int, len(spans))
	var answers []bool
	for _, a := range from.classes {
		for _, b := range to.classes {
			src, dst, count := pair(a, b)
			if count == 0 {
				continue
			}
			c.Pairs += count
			answers = judge(ev, s, src, dst, spans, answers)
			for i, yes := range answers {
				if yes {
					allowed[i] += count
				}
			}
		}
	}
	runs(spans, func(i, j int) bool { return allowed[i] == allowed[j] }, func(joint Span, i int) {
		if allowed[i] > 0 {
			c.Reach = append(c.Reach, Reach{joint, allowed[i]})
		}
	})
	return c
}
