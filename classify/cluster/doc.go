// Package cluster holds the compact forms of the cluster objects that classification needs: pods, nodes, namespaces.
//
// A decoded corev1.Pod takes several kilobytes, and an agent that keeps 100,000 of them cannot live on a node. The
// forms here keep a hundredth of that, share what many objects have in common (label sets, port lists, node names), and
// hold no reference into the API object they were made from. All of them are immutable once made.
package cluster

import (
	"net/netip"
	"slices"
	"strings"
	"unique"
)

// interned returns a string equal to s that is stored once for all its users and does not keep s alive.
func interned(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// parseAddr reads an address as objects carry them. IPv4-mapped IPv6 addresses are unmapped, because the packets that
// belong to them are IPv4. Addresses that no packet of an endpoint can have are refused: those with a zone, the
// unspecified address, loopback and multicast.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	a = a.Unmap()
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return netip.Addr{}, false
	}
	return a, true
}

// addrSet parses the valid ones of raw, sorted and without repetition; nil for none.
func addrSet(raw []string) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(raw))
	for _, s := range raw {
		if a, ok := parseAddr(s); ok {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if len(addrs) == 0 {
		return nil
	}
	return slices.Clip(addrs)
}

// prefixSet parses the valid ones of raw, masked, sorted and without repetition; nil for none.
func prefixSet(raw []string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, s := range raw {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				continue
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		prefixes = append(prefixes, p.Masked())
	}
	slices.SortFunc(prefixes, ComparePrefix)
	return slices.Compact(prefixes)
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// Key is the name under which an object is queued and indexed: namespace/name, or name alone for cluster-scoped
// objects.
func Key(namespace, name string) string {
	if namespace == "" {
		return strings.Clone(name)
	}
	return namespace + "/" + name
}
