package endpoint

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// claim enters the record's claims. The record must have none.
func (x *Index) claim(r *record) {
	x.touch(r)
	if !r.owns {
		return
	}
	for _, addr := range r.ep.Addrs {
		holder := x.owners[addr]
		if holder == nil {
			x.owners[addr] = r
			continue
		}
		claims := x.contested[addr]
		if claims == nil {
			claims = []*record{holder}
		}
		x.contested[addr] = append(claims, r)
		if r.stronger(holder) {
			x.owners[addr] = r
		}
	}
}

// withdraw removes the record's claims, if it has any; the next strongest claim of each address takes its place.
func (x *Index) withdraw(r *record) {
	x.touch(r)
	if !r.owns {
		return
	}
	for _, addr := range r.ep.Addrs {
		claims := x.contested[addr]
		if claims == nil {
			delete(x.owners, addr)
			continue
		}
		claims = slices.DeleteFunc(claims, func(c *record) bool { return c == r })
		strongest := claims[0]
		for _, c := range claims[1:] {
			if c.stronger(strongest) {
				strongest = c
			}
		}
		x.owners[addr] = strongest
		if len(claims) == 1 {
			delete(x.contested, addr)
		} else {
			x.contested[addr] = claims
		}
	}
}

// touch notes the present owners of the record's addresses, before they change, for Flush to compare with.
func (x *Index) touch(r *record) {
	if !r.owns {
		return
	}
	for _, addr := range r.ep.Addrs {
		if _, ok := x.before[addr]; !ok {
			x.before[addr] = x.Lookup(addr)
		}
	}
}

// stronger tells whether r's claim to an address beats o's; never both ways, and always one way for different objects.
func (r *record) stronger(o *record) bool {
	if r.ep.Kind != o.ep.Kind {
		return r.ep.Kind == identity.Node
	}
	if r.running != o.running {
		return r.running
	}
	if r.started != o.started {
		return r.started > o.started
	}
	if c := bytes.Compare(r.uid[:], o.uid[:]); c != 0 {
		return c > 0
	}
	return r.key > o.key
}

// podCIDRs counts how many nodes have each pod CIDR.
type podCIDRs struct {
	refs   map[netip.Prefix]int
	sorted []netip.Prefix
	// stale is true when sorted no longer lists the keys of refs.
	stale bool
}

func (c *podCIDRs) replace(old, now []netip.Prefix) {
	if slices.Equal(old, now) {
		return
	}
	for _, p := range now {
		if c.refs[p]++; c.refs[p] == 1 {
			c.stale = true
		}
	}
	for _, p := range old {
		if c.refs[p]--; c.refs[p] == 0 {
			delete(c.refs, p)
			c.stale = true
		}
	}
}

func (c *podCIDRs) list() []netip.Prefix {
	if c.stale {
		c.stale = false
		c.sorted = make([]netip.Prefix, 0, len(c.refs))
		for p := range c.refs {
			c.sorted = append(c.sorted, p)
		}
		slices.SortFunc(c.sorted, cluster.ComparePrefix)
	}
	return c.sorted
}
