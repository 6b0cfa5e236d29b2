package reach

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// outside makes a class of all addresses outside of the cluster that no address block tells apart, for the families
// that pods have.
func outside(worlds []World, inside []*class) []*class {
	var is4, is6 bool
	for _, c := range inside {
		is4 = is4 || c.judged() && c.is4()
		is6 = is6 || c.judged() && !c.is4()
	}
	list := blocks(worlds)
	var prefixes []netip.Prefix
	for _, b := range list {
		prefixes = append(append(prefixes, b.CIDR), b.Except...)
	}
	for _, w := range worlds {
		prefixes = append(prefixes, w.PodCIDRs...)
	}
	var all []*class
	if is4 {
		all = outsideOf(worlds, list, ranges(prefixes, netip.IPv4Unspecified()))
	}
	if is6 {
		all = append(all, outsideOf(worlds, list, ranges(prefixes, netip.IPv6Unspecified()))...)
	}
	return all
}

// addressRange is inclusive.
type addressRange struct{ first, last netip.Addr }

// ranges cuts the family of the address zero at the ends of the prefixes.
func ranges(prefixes []netip.Prefix, zero netip.Addr) []addressRange {
	starts := []netip.Addr{zero}
	for _, p := range prefixes {
		if p.Addr().Is4() != zero.Is4() {
			continue
		}
		starts = append(starts, p.Masked().Addr())
		if after := lastOf(p).Next(); after.IsValid() {
			starts = append(starts, after)
		}
	}
	slices.SortFunc(starts, netip.Addr.Compare)
	starts = slices.Compact(starts)
	list := make([]addressRange, len(starts))
	for i, start := range starts {
		list[i].first = start
		if i+1 < len(starts) {
			list[i].last = starts[i+1].Prev()
		} else {
			list[i].last = lastOf(netip.PrefixFrom(zero, 0))
		}
	}
	return list
}

// lastOf is the last address of the prefix.
func lastOf(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(raw) // the length is an address's
	return a
}

// outsideOf gathers the ranges that lie in the same blocks.
func outsideOf(worlds []World, list []*rule.Block, all []addressRange) []*class {
	byBlocks := map[string]*class{}
	named := map[*class][]string{}
	var order []*class
	var buf []byte
	for _, r := range all {
		a, ok := vacant(worlds, r)
		if !ok {
			continue
		}
		buf = membership(list, a, buf)
		c := byBlocks[string(buf)]
		if c == nil {
			c = &class{members: []member{{addr: a}}}
			byBlocks[string(buf)] = c
			order = append(order, c)
		}
		named[c] = append(named[c], r.String())
	}
	for _, c := range order {
		c.outside = "outside " + shorten(named[c])
	}
	return order
}

// tries bounds how far a range is searched for an address that nobody owns.
const tries = 1 << 16

// vacant finds an address of the range that is not for pods and that nobody in the cluster owns.
func vacant(worlds []World, r addressRange) (netip.Addr, bool) {
	a := r.first
	if a.IsUnspecified() && r.last != a {
		a = a.Next() // no packet has that one
	}
	for _, w := range worlds {
		// The ranges were cut at the ends of these prefixes, so that one address speaks for all of its range.
		if slices.ContainsFunc(w.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return netip.Addr{}, false
		}
	}
	owned := func(w World) bool { return w.Snapshot.Endpoint(a) != nil }
	for range tries {
		if !slices.ContainsFunc(worlds, owned) {
			return a, true
		}
		if a == r.last {
			break
		}
		a = a.Next()
	}
	return netip.Addr{}, false
}

// String prints the range as a prefix if it is one.
func (r addressRange) String() string {
	for bits := range r.first.BitLen() + 1 {
		p := netip.PrefixFrom(r.first, bits)
		if p.Masked().Addr() == r.first && lastOf(p) == r.last {
			if bits == r.first.BitLen() {
				return r.first.String()
			}
			return p.String()
		}
	}
	return r.first.String() + "-" + r.last.String()
}

// shorten keeps the first few of the parts.
func shorten(parts []string) string {
	const most = 2
	if len(parts) > most {
		return strings.Join(parts[:most], ", ") + ", ..."
	}
	return strings.Join(parts, ", ")
}
