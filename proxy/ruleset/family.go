package ruleset

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// family is what differs between IPv4 and IPv6 in rules and sets.
type family struct {
	// suffix ends the names of the family's sets and chains.
	suffix string
	// ip is the header's name in rules.
	ip      string
	nfproto byte
	icmp    byte
	// saddr and daddr are offsets of the addresses in the header, size is their length; all in bytes.
	saddr, daddr, size uint32
	addrType           nftables.SetDatatype
}

// Header offsets from RFC 791, section 3.1 and RFC 8200, section 3.
var (
	ipv4 = &family{
		suffix: "4", ip: "ip", nfproto: unix.NFPROTO_IPV4, icmp: unix.IPPROTO_ICMP,
		saddr: 12, daddr: 16, size: 4, addrType: nftables.TypeIPAddr,
	}
	ipv6 = &family{
		suffix: "6", ip: "ip6", nfproto: unix.NFPROTO_IPV6, icmp: unix.IPPROTO_ICMPV6,
		saddr: 8, daddr: 24, size: 16, addrType: nftables.TypeIP6Addr,
	}
	families = [...]*family{ipv4, ipv6}
)

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// set names the family's set (or chain) of that kind.
func (f *family) set(kind string) string { return kind + f.suffix }

// Kinds of sets that exist once per family. Names are <kind>4 and <kind>6.
const (
	kindIngress      = "ingress"
	kindEgress       = "egress"
	kindIngressAudit = "ingress_audit"
	kindEgressAudit  = "egress_audit"
	kindKnown        = "known"
	kindSelf         = "self"
	kindPods         = "pods"
	kindNames        = "names"
	kindResolvers    = "resolvers"
	kindAllowed      = "allowed"
	kindDenied       = "denied"
	kindNoisy        = "noisy"
	kindShares       = "shares"
)

// elements is the content of sets by name, each sorted by key and without doubles.
type elements map[string][]nftables.SetElement

func (e elements) add(set string, key []byte) {
	e[set] = append(e[set], nftables.SetElement{Key: key})
}

// normalize sorts and drops doubles.
func (e elements) normalize() {
	for name, list := range e {
		slices.SortFunc(list, compareElements)
		e[name] = slices.CompactFunc(list, func(a, b nftables.SetElement) bool { return compareElements(a, b) == 0 })
	}
}

func compareElements(a, b nftables.SetElement) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	switch {
	case a.IntervalEnd == b.IntervalEnd:
		return 0
	case a.IntervalEnd: // where one interval ends and the next begins
		return -1
	default:
		return 1
	}
}

// addSubject sorts the subject into the sets it belongs to (in) and those it does not (out).
func addSubject(in, out elements, s Subject) {
	addr := s.Addr.WithZone("")
	f := familyOf(addr)
	key := addr.AsSlice()
	pair := slices.Concat(key, key)
	for _, c := range []struct {
		kind   string
		key    []byte
		member bool
	}{
		{kindKnown, key, true},
		{kindSelf, pair, s.Pod},
		{kindIngress, key, s.Pod && s.Ingress},
		{kindEgress, key, s.Pod && s.Egress},
		{kindIngressAudit, key, s.Pod && s.Ingress && s.IngressAudit},
		{kindEgressAudit, key, s.Pod && s.Egress && s.EgressAudit},
		{kindNames, key, s.Pod && s.Egress && s.Names},
	} {
		if c.member {
			in.add(f.set(c.kind), c.key)
		} else {
			out.add(f.set(c.kind), c.key)
		}
	}
}

// removeSubject names the address in all sets that it may be in.
func removeSubject(out elements, addr netip.Addr) {
	addr = addr.WithZone("")
	f, key := familyOf(addr), addr.AsSlice()
	out.add(f.set(kindKnown), key)
	out.add(f.set(kindSelf), slices.Concat(key, key))
	for _, kind := range []string{kindIngress, kindEgress, kindIngressAudit, kindEgressAudit, kindNames} {
		out.add(f.set(kind), key)
	}
}

// addResolvers adds the servers to the sets of their families.
func addResolvers(in elements, list []Resolver) {
	for _, r := range list {
		addr := r.Addr.WithZone("")
		in.add(familyOf(addr).set(kindResolvers), slices.Concat(addr.AsSlice(),
			[]byte{r.Proto, 0, 0, 0}, []byte{byte(r.Port >> 8), byte(r.Port), 0, 0}))
	}
}

// addPrefixes turns CIDRs into the half-open intervals that nftables stores. Ranges inside others are left out: the
// kernel refuses overlaps.
func addPrefixes(in elements, prefixes []netip.Prefix) {
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p.IsValid() {
			sorted = append(sorted, p.Masked())
		}
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var last netip.Prefix
	for _, p := range sorted {
		if last.IsValid() && last.Overlaps(p) {
			continue
		}
		last = p
		set := familyOf(p.Addr()).set(kindPods)
		in[set] = append(in[set], nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := after(p); end.IsValid() {
			in[set] = append(in[set], nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
}

// after returns the first address past the prefix; the zero Addr when the prefix reaches the end of the address space,
// for which nftables leaves the interval open.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		switch bits := p.Bits() - i*8; {
		case bits <= 0:
			b[i] = 0xff
		case bits < 8:
			b[i] |= 0xff >> bits
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}

// tupleKey returns the set key of a tuple. Its fields are padded to 4 bytes, as in the kernel's registers. ok is false
// for tuples that no set can hold: mixed families and protocols without ports.
func tupleKey(t Tuple) (key []byte, f *family, ok bool) {
	if !t.Src.IsValid() || !t.Dst.IsValid() || t.Src.Is4() != t.Dst.Is4() || !hasPorts(t.Proto) {
		return nil, nil, false
	}
	key = slices.Concat(t.Src.AsSlice(), t.Dst.AsSlice(),
		[]byte{t.Proto, 0, 0, 0}, []byte{byte(t.DstPort >> 8), byte(t.DstPort), 0, 0})
	return key, familyOf(t.Src), true
}

// tupleOf is the reverse of tupleKey.
func tupleOf(f *family, key []byte) (Tuple, bool) {
	n := int(f.size)
	if len(key) != 2*n+8 {
		return Tuple{}, false
	}
	src, _ := netip.AddrFromSlice(key[:n])
	dst, _ := netip.AddrFromSlice(key[n : 2*n])
	rest := key[2*n:]
	return Tuple{Src: src, Dst: dst, Proto: rest[0], DstPort: uint16(rest[4])<<8 | uint16(rest[5])}, true
}

// sourceKey returns the set key of a source.
func sourceKey(s Source) ([]byte, *family) {
	addr := s.Addr.WithZone("")
	return append(host(s.In), addr.AsSlice()...), familyOf(addr)
}

func hasPorts(proto uint8) bool { return slices.Contains(protosWithPorts[:], proto) }

var protosWithPorts = [...]byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP}

func protoName(proto uint8) string {
	switch proto {
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return "proto"
}
