package reach

import (
	"context"
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// Link says what policy lets one group open to another.
type Link struct {
	// From and To are indices of groups.
	From, To int
	// Ports has the ranges at which any pair is allowed, in order; none if all is denied. All says that every pair is
	// allowed at every port; Ports is not told then.
	Ports []Span
	All   bool
	// Part says that some pairs are allowed what others are not.
	Part bool
}

// Select makes a group of the endpoints that a function picks, all of them pods.
func Select(name string, selects func(*endpoint.Endpoint) bool) Group {
	return Group{Name: name, selects: selects}
}

// Outside makes a group of each set of addresses outside of the cluster that no address block tells apart, named after
// the narrowest block that has them.
func Outside(w World) []Group {
	worlds := []World{w}
	list := blocks(worlds)
	var groups []Group
	named := map[string]bool{}
	for _, c := range outside(worlds, classes(worlds, nil)) {
		name := "other addresses"
		if !c.is4() {
			name = "other IPv6 addresses"
		}
		if b := narrowest(list, c.members[0].addr); b != nil {
			name = b.String()
			if b.CIDR.IsSingleIP() {
				name = b.CIDR.Addr().String()
			}
		}
		if named[name] {
			name = c.outside
		}
		named[name] = true
		groups = append(groups, Group{Name: name, classes: []*class{c}})
	}
	return groups
}

// Links asks what the groups may open to each other, for those pairs that any policy is about: its source is isolated
// for egress, or its destination for ingress. All else is allowed anyway. At most sample kinds of pods of each group
// are asked for, and sampled tells whether some group has more. The error is the context's.
func Links(ctx context.Context, w World, groups []Group, sample int) (links []Link, sampled bool, err error) {
	worlds := []World{w}
	all := classes(worlds, nil)
	groups = slices.Clone(groups)
	for i := range groups {
		g := &groups[i]
		if g.classes == nil {
			g.fill(all)
		}
		if len(g.classes) > sample {
			g.classes, sampled = g.classes[:sample], true
		}
	}
	covered := coverage(w.Snapshot)
	m := Matrix{} // for every port
	spans := distinct(worlds)
	ev := engine.NewEvaluator(pairCache)
	for i := range groups {
		for j := range groups {
			if ctx.Err() != nil {
				return nil, false, context.Cause(ctx)
			}
			if !covered.egress(&groups[i]) && !covered.ingress(&groups[j]) {
				continue
			}
			c := cell(ev, w.Snapshot, &groups[i], &groups[j], spans)
			link := Link{From: i, To: j}
			switch m.extent(&c) {
			case empty:
				continue
			case whole:
				link.All = true
			default:
				for _, r := range c.Reach {
					link.Ports = append(link.Ports, r.Ports)
					link.Part = link.Part || r.Allowed < c.Pairs
				}
			}
			links = append(links, link)
		}
	}
	return links, sampled, nil
}

// covers has the subjects of policies.
type covers map[netip.Addr]engine.Subject

func coverage(s *engine.Snapshot) covers {
	all := covers{}
	for subject := range s.Subjects() {
		if subject.Ingress || subject.Egress {
			all[subject.Addr] = subject
		}
	}
	return all
}

func (c covers) egress(g *Group) bool {
	return slices.ContainsFunc(g.classes, func(cl *class) bool { return c[cl.members[0].addr].Egress })
}

func (c covers) ingress(g *Group) bool {
	return slices.ContainsFunc(g.classes, func(cl *class) bool { return c[cl.members[0].addr].Ingress })
}
