package reach

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// class is a set of addresses that no rule can tell apart.
type class struct {
	// members are in the order of names.
	members []member
	// outside names the addresses of a class that is no endpoint's; then members has one representative.
	outside string
}

type member struct {
	addr netip.Addr
	// ep is the owner in the first world that has one; nil outside of the cluster.
	ep *endpoint.Endpoint
}

func (c *class) is4() bool { return c.members[0].addr.Is4() }

func (c *class) kind() identity.Kind {
	if ep := c.members[0].ep; ep != nil {
		return ep.Kind
	}
	return 0
}

func (c *class) judged() bool { return c.kind() == identity.Pod }

// key is what rules can see of an address.
type key struct {
	is4    bool
	owners [2]owner // by world
	blocks string
	marked bool
}

type owner struct {
	identity identity.Handle
	ports    *endpoint.Ports
}

// classes sorts all addresses with an owner into classes. marked keeps addresses apart that a rule may not; it may be
// nil. There are at most two worlds.
func classes(worlds []World, marked map[netip.Addr]bool) []*class {
	list := blocks(worlds)
	byKey := map[key]*class{}
	var buf []byte
	for i, w := range worlds {
		for a, ep := range w.Snapshot.Endpoints() {
			if i > 0 && worlds[0].Snapshot.Endpoint(a) != nil {
				continue // the first world had it
			}
			k := key{is4: a.Is4(), marked: marked[a]}
			for j, other := range worlds {
				if o := other.Snapshot.Endpoint(a); o != nil {
					k.owners[j] = owner{o.Identity, o.Ports}
				}
			}
			buf = membership(list, a, buf)
			k.blocks = string(buf)
			c := byKey[k]
			if c == nil {
				c = new(class)
				byKey[k] = c
			}
			c.members = append(c.members, member{a, ep})
		}
	}
	all := make([]*class, 0, len(byKey))
	for _, c := range byKey {
		slices.SortFunc(c.members, member.compare)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *class) int { return a.members[0].compare(b.members[0]) })
	return all
}

func (m member) compare(o member) int {
	return cmp.Or(
		cmp.Compare(m.ep.Kind, o.ep.Kind), strings.Compare(m.ep.Namespace, o.ep.Namespace),
		strings.Compare(m.ep.Name, o.ep.Name), m.addr.Compare(o.addr),
	)
}

// pair finds two members between which policy is asked, and how many such pairs there are. A pod and itself are none,
// nor are a pod and its own node, nor two families.
func pair(a, b *class) (src, dst netip.Addr, count int) {
	if a.is4() != b.is4() || !a.judged() && !b.judged() {
		return src, dst, 0
	}
	nodes := a.kind() == identity.Node || b.kind() == identity.Node
	if !nodes {
		count = len(a.members) * len(b.members)
		if a == b {
			if count -= len(a.members); count > 0 {
				return a.members[0].addr, a.members[1].addr, count
			}
			return src, dst, 0
		}
		return a.members[0].addr, b.members[0].addr, count
	}
	for _, m := range a.members {
		for _, n := range b.members {
			if m.ep != nil && n.ep != nil && m.ep.Node == n.ep.Node {
				continue
			}
			src, dst = m.addr, n.addr
			count++
		}
	}
	return src, dst, count
}
