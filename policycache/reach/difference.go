package reach

import (
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// Difference is how verdicts differ between two states of a cluster.
type Difference struct {
	// Changes are in the order of sources, then destinations.
	Changes []Change `json:"changes"`
	// Gained and Lost count pairs of addresses that would reach each other at more ports, and at fewer.
	Gained int `json:"gained"`
	Lost   int `json:"lost"`
	// Appeared and Vanished are pods that only one of the states has: no change is told for these.
	Appeared []string `json:"appeared,omitempty"`
	Vanished []string `json:"vanished,omitempty"`
}

// Change is what differs between two parties.
type Change struct {
	From Party `json:"from"`
	To   Party `json:"to"`
	// Family is IPv4 or IPv6.
	Family string `json:"family"`
	// Pairs counts the pairs of addresses that it is about.
	Pairs int `json:"pairs"`
	// Allowed are ports that would be allowed and are denied now; Denied the other way round.
	Allowed []Span `json:"allowed,omitempty"`
	Denied  []Span `json:"denied,omitempty"`
}

// Party is a set of pods, nodes or addresses outside of the cluster that no rule tells apart.
type Party struct {
	// Name is that of the first member.
	Name string `json:"name"`
	// Members are all names, unless there is only one.
	Members []string `json:"members,omitempty"`
}

// Compare finds every pair whose verdict differs at some port. affected are the addresses of which it can differ: those
// of the engine's Delta.
func Compare(before, after World, affected []netip.Addr, progress Progress) *Difference {
	worlds := []World{before, after}
	marked := make(map[netip.Addr]bool, len(affected))
	for _, a := range affected {
		marked[a] = true
	}
	d := &Difference{Changes: []Change{}}
	var all []*class
	for _, c := range classes(worlds, marked) {
		was, is := before.Snapshot.Endpoint(c.members[0].addr), after.Snapshot.Endpoint(c.members[0].addr)
		switch {
		case was == nil:
			d.Appeared = append(d.Appeared, c.names()...)
		case is == nil:
			d.Vanished = append(d.Vanished, c.names()...)
		default:
			all = append(all, c)
		}
	}
	all = append(all, outside(worlds, all)...)
	q := comparison{
		before: before.Snapshot, after: after.Snapshot, spans: distinct(worlds), ev: engine.NewEvaluator(pairCache),
	}
	for i, from := range all {
		for _, to := range all {
			if marked[from.members[0].addr] || marked[to.members[0].addr] {
				q.pair(d, from, to)
			}
		}
		progress.tell(i+1, len(all))
	}
	return d
}

// comparison asks two snapshots the same questions.
type comparison struct {
	before, after *engine.Snapshot
	spans         []Span
	ev            *engine.Evaluator
	was, is       []bool
}

func (q *comparison) pair(d *Difference, from, to *class) {
	src, dst, count := pair(from, to)
	if count == 0 {
		return
	}
	q.was = judge(q.ev, q.before, src, dst, q.spans, q.was)
	q.is = judge(q.ev, q.after, src, dst, q.spans, q.is)
	c := Change{Pairs: count, Family: "IPv6"}
	if from.is4() {
		c.Family = "IPv4"
	}
	alike := func(i, j int) bool { return q.was[i] == q.was[j] && q.is[i] == q.is[j] }
	runs(q.spans, alike, func(joint Span, i int) {
		switch {
		case q.is[i] && !q.was[i]:
			c.Allowed = append(c.Allowed, joint)
		case q.was[i] && !q.is[i]:
			c.Denied = append(c.Denied, joint)
		}
	})
	if c.Allowed == nil && c.Denied == nil {
		return
	}
	c.From, c.To = from.party(), to.party()
	if c.Allowed != nil {
		d.Gained += count
	}
	if c.Denied != nil {
		d.Lost += count
	}
	d.Changes = append(d.Changes, c)
}

func (c *class) party() Party {
	if c.outside != "" {
		return Party{Name: c.outside}
	}
	names := c.names()
	p := Party{Name: names[0]}
	if len(names) > 1 {
		p.Members = names
	}
	return p
}

// names are those of the members, each once.
func (c *class) names() []string {
	names := make([]string, len(c.members))
	for i, m := range c.members {
		names[i] = m.ep.Namespace + "/" + m.ep.Name
		if m.ep.Kind == identity.Node {
			names[i] = "node " + m.ep.Name
		}
	}
	return slices.Compact(names)
}
