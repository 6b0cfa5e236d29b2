package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// names are the addresses that a pod has learned under names that its egress Program has for peers. Immutable.
type names struct {
	table *bart.Table[told]
}

// noNames are those of a pod that has learned none, or is not asked for any.
var noNames = &names{table: new(bart.Table[told])}

// told is what is known of an address. Classes are nil where no pattern matches.
type told struct {
	// live is the class of the names that hold, ever that of all, the lapsed ones included.
	live, ever *nameClass
	// names are those that match a pattern; the first current of them hold.
	names   []string
	current int
}

// nameClass is a set of patterns. All addresses that a pod knows under names that match just these are alike to rules.
type nameClass struct {
	// number is above 0 and never used for another set.
	number uint32
	// patterns are sorted by their text.
	patterns []domain.Pattern
}

func comparePatterns(a, b domain.Pattern) int { return strings.Compare(a.String(), b.String()) }

// has tells whether the pattern matches an address of the class; a nil class has none.
func (c *nameClass) has(p domain.Pattern) bool { return c != nil && slices.Contains(c.patterns, p) }

// upper is the class's part of pairKey.class; 0 for none.
func (c *nameClass) upper() uint64 {
	if c == nil {
		return 0
	}
	return uint64(c.number) << 32
}

// class looks an address up. It allocates nothing.
func (n *names) class(a netip.Addr, lapsed bool) *nameClass {
	t, _ := n.table.Lookup(a)
	if lapsed {
		return t.ever
	}
	return t.live
}

// explain says whether the peer is known under the pattern, and as what.
func (n *names) explain(p *rule.Peer, peer *entry, addr netip.Addr) (bool, string) {
	if peer.ep != nil {
		return false, p.String() + " (which no pods and nodes have)"
	}
	if n == noNames {
		return false, p.String() + " (the pod has learned none)"
	}
	t, _ := n.table.Lookup(addr)
	for i, name := range t.names {
		switch {
		case !p.Name.Matches(name):
		case i < t.current:
			return true, fmt.Sprintf("the peer is among %s: the pod has asked for %s", p, name)
		default:
			return false, fmt.Sprintf("%s (%s was asked for too long ago)", p, name)
		}
	}
	return false, p.String()
}

// addName adds a pattern to those of the program.
func (p *Program) addName(n domain.Pattern) {
	if i, ok := slices.BinarySearchFunc(p.names, n, comparePatterns); !ok {
		p.names = slices.Insert(p.names, i, n)
	}
}

// podKey names a pod. A pod asks from one of its addresses, and connects from any.
type podKey struct{ namespace, name string }

func keyOfPod(ep *endpoint.Endpoint) podKey { return podKey{ep.Namespace, ep.Name} }

// page is what a pod has learned, with the result for its present Program.
type page struct {
	domain.Page
	// asked is an address of the pod.
	asked netip.Addr
	// program is the one that names was made for; nil to have it made anew.
	program *Program
	names   *names
	// changed are addresses that names has not taken over yet.
	changed []netip.Addr
	facts   factsOfPage
}

// Learn takes over an answer that the pod with the address was given, which holds until then. Names and addresses are
// kept whatever the policies are, so that one that comes later knows them, and for as long as the pod is there.
// Addresses that pods and nodes own, or that lie in the pod CIDRs, are not reachable under any name. Learn tells
// whether a pod of this node has the pod's address.
func (m *Model) Learn(pod netip.Addr, a domain.Answer, until time.Time) bool {
	ep := m.owner(pod)
	if !m.isSubject(ep) {
		return false
	}
	key := keyOfPod(ep)
	p := m.pages[key]
	if p == nil {
		p = &page{}
		m.pages[key] = p
	}
	p.asked = pod
	m.learn(key, p, a, until)
	return true
}

func (m *Model) learn(key podKey, p *page, a domain.Answer, until time.Time) {
	changed := p.Learn(a, until)
	m.turned(p, changed)
	m.untold(key, p, a.Addrs, changed)
}

// Lapse ends names whose time is over.
func (m *Model) Lapse(now time.Time) {
	for _, p := range m.pages {
		m.turned(p, p.Expire(now))
	}
}

// turned notes that the names of addresses are others now.
func (m *Model) turned(p *page, changed []netip.Addr) {
	if len(changed) > 0 {
		p.changed = append(p.changed, changed...)
		m.renew(p)
	}
}

// renew has the entries of the page's pod written: a pod asks from one of its addresses and connects from any.
func (m *Model) renew(p *page) {
	pod := m.owner(p.asked)
	if pod == nil {
		return
	}
	for _, a := range pod.Addrs {
		if ep := m.owner(a); m.isSubject(ep) && keyOfPod(ep) == keyOfPod(pod) {
			m.pending[a] = ep
		}
	}
}

// renewAll does so for every pod, from the start: the pod CIDRs are others.
func (m *Model) renewAll() {
	for _, p := range m.pages {
		p.program = nil
		m.renew(p)
	}
}

// namesOf gives what the pod has learned that its egress Program asks for.
func (m *Model) namesOf(ep *endpoint.Endpoint, egress *Program) *names {
	p := m.pages[keyOfPod(ep)]
	if p == nil {
		return noNames
	}
	if egress == nil || egress.names == nil {
		p.program, p.names, p.changed = nil, nil, nil
		return noNames
	}
	table := new(bart.Table[told])
	changed := p.changed
	if p.program == egress && p.names != nil {
		if len(changed) == 0 {
			return p.names
		}
		table = p.names.table
	} else {
		changed = p.Addrs()
	}
	p.program, p.changed = egress, nil
	same := true
	for _, a := range changed {
		old, had := table.Lookup(a)
		now := m.told(p, egress, a)
		if had == (now.ever != nil) && now.live == old.live && now.ever == old.ever && slices.Equal(now.names, old.names) {
			continue
		}
		same = false
		if now.ever == nil {
			table = table.DeletePersist(prefixOf(a))
		} else {
			table = table.InsertPersist(prefixOf(a), now)
		}
	}
	if p.names == nil || !same {
		p.names = &names{table}
	}
	return p.names
}

// told looks up which of the Program's patterns the names of an address match.
func (m *Model) told(p *page, egress *Program, a netip.Addr) told {
	if m.cluster.Contains(a) {
		return told{}
	}
	live, lapsed := p.Names(a)
	t := told{names: matching(egress.names, live)}
	t.current = len(t.names)
	t.names = append(t.names, matching(egress.names, lapsed)...)
	t.live, t.ever = m.classOf(egress.names, t.names[:t.current]), m.classOf(egress.names, t.names)
	return t
}

// matching are the names that a pattern matches.
func matching(patterns []domain.Pattern, list []string) []string {
	return slices.DeleteFunc(list, func(name string) bool {
		return !slices.ContainsFunc(patterns, func(p domain.Pattern) bool { return p.Matches(name) })
	})
}

// classLimit is the number of sets of patterns from which on they are numbered anew, so that those of policies that are
// gone do not pile up.
const classLimit = 1 << 12

// classOf gives the class of these names, nil for none.
func (m *Model) classOf(patterns []domain.Pattern, list []string) *nameClass {
	if len(list) == 0 {
		return nil
	}
	var (
		set []domain.Pattern
		key strings.Builder
	)
	for _, p := range patterns {
		if slices.ContainsFunc(list, p.Matches) {
			set = append(set, p)
			key.WriteString(p.String())
			key.WriteByte(' ')
		}
	}
	c := m.classes[key.String()]
	if c == nil {
		if m.classes == nil || len(m.classes) >= classLimit {
			m.classes = make(map[string]*nameClass)
		}
		m.class++
		c = &nameClass{number: m.class, patterns: set}
		m.classes[key.String()] = c
	}
	return c
}

// Names is how many addresses each pod has learned under names, by namespace/name; nil for none.
func (m *Model) Names() map[string]int {
	if len(m.pages) == 0 {
		return nil
	}
	counts := make(map[string]int, len(m.pages))
	for pod, p := range m.pages {
		counts[pod.namespace+"/"+pod.name] = p.Len()
	}
	return counts
}

// Learned tells whether everything that the answer makes reachable for the pod with the address is in force in the
// snapshot. It is for addresses of which nobody else knows; those of pods and nodes are not reachable under names, and
// are in force as they are.
func (s *Snapshot) Learned(pod netip.Addr, a *domain.Answer) bool {
	e, _ := s.table.Lookup(pod)
	if e.egress == nil || len(e.egress.names) == 0 {
		return true
	}
	for _, p := range e.egress.names {
		if !slices.ContainsFunc(a.Names, p.Matches) {
			continue
		}
		for _, addr := range a.Addrs {
			if _, owned := s.table.Lookup(addr); owned || s.cluster.Contains(addr) {
				continue
			}
			if !e.names.class(addr, false).has(p) {
				return false
			}
		}
	}
	return true
}
