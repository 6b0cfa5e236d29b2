package reach

import (
	"fmt"
	"net/netip"
	"slices"

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

// outsideOf makes a class of the ranges that lie in the same blocks.
func outsideOf(worlds []World, list []*rule.Block, all []addressRange) []*class {
	known := map[string]bool{}
	var found []*class
	var buf []byte
	for _, r := range all {
		a, ok := vacant(worlds, r)
		if !ok {
			continue
		}
		buf = membership(list, a, buf)
		if !known[string(buf)] {
			known[string(buf)] = true
			found = append(found, &class{members: []member{{addr: a}}, outside: describe(list, a)})
		}
	}
	return found
}

// describe names the class of an address after the narrowest block that it lies in.
func describe(list []*rule.Block, a netip.Addr) string {
	b := narrowest(list, a)
	if b == nil {
		return fmt.Sprintf("outside of all blocks (like %s)", a)
	}
	return fmt.Sprintf("outside in %s (like %s)", b, a)
}

// narrowest is the narrowest block with the address, nil if none has it.
func narrowest(list []*rule.Block, a netip.Addr) *rule.Block {
	var found *rule.Block
	for _, b := range list {
		if b.Contains(a) && (found == nil || b.CIDR.Bits() > found.CIDR.Bits()) {
			found = b
		}
	}
	return found
}

// tries bounds how far a range is searched for an address that nobody owns.
const tries = 1 << 16

// usualAddrs are the first ones that hosts of the internet have (RFC 1122, section 3.2.1.3; RFC 4291, section 2.4).
var usualAddrs = []netip.Addr{netip.MustParseAddr("1.0.0.1"), netip.MustParseAddr("2000::1")}

// vacant finds an address of the range that is not for pods and that nobody in the cluster owns.
func vacant(worlds []World, r addressRange) (netip.Addr, bool) {
	a := r.first
	for _, usual := range usualAddrs {
		if r.first.Compare(usual) <= 0 && usual.Compare(r.last) <= 0 && usual.Is4() == a.Is4() {
			a = usual
		}
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
