package engine

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Config is fixed for the life of a Model.
type Config struct {
	// Node is the name of the node whose pods are subjects. Empty makes the pods of all nodes subjects, as explaining
	// and drawing the matrix of a whole cluster need it.
	Node string
	// Audit puts every policy in audit mode and denies nothing else either: packets that cannot be read and addresses
	// that nobody knows pass too. Verdict.Would says what would have become of them.
	Audit bool
}

// Model is the mutable side: it takes changes of endpoints and policies and gives snapshots. It belongs to one
// goroutine. A change costs what it touches: a policy is matched against the local pods of the namespaces it can
// select in, an endpoint against the policies that can select it, and nothing is matched twice.
type Model struct {
	cfg Config

	policies map[rule.Ref]*policy
	// byNamespace holds the policies whose subjects are in one fixed namespace; wide all others.
	byNamespace map[string][]*policy
	wide        []*policy

	// groups are the subjects, by identity: pods that no selector can tell apart are matched once.
	groups     map[identity.Handle]*group
	namespaces map[string]map[*group]struct{}

	// programs interns Programs by the policies they are made of.
	programs map[string]*Program
	serial   uint64
	key      []byte // scratch

	// pending are the owners that are new since the last Commit; nil for addresses that lost theirs.
	pending map[netip.Addr]*endpoint.Endpoint
	// stale are the groups whose list of policies changed since the last Commit.
	stale map[*group]struct{}

	// pages are what pods have learned under domain names; classes interns sets of patterns.
	pages   map[podKey]*page
	classes map[string]*nameClass
	class   uint32 // the last number given
	facts   facts

	cluster, local *bart.Lite
	ranges         bool // changed since the last Commit

	last *Snapshot
	work Work
}

// group is the subjects of one identity.
type group struct {
	identity identity.Handle
	value    identity.Identity
	addrs    map[netip.Addr]struct{}
	// policies select the group, in the order of evaluation.
	policies        []*policy
	ingress, egress *Program
}

// Work counts what a Model has done since it was made, so that tests can hold its cost to what was touched.
type Work struct {
	// Matches counts tests of a policy's subject against an identity.
	Matches uint64
	// Programs counts compilations of a list of policies.
	Programs uint64
	// Entries counts entries of the address table that were written.
	Entries uint64
}

// NewModel makes an empty model.
func NewModel(cfg Config) *Model {
	return &Model{
		cfg:         cfg,
		policies:    make(map[rule.Ref]*policy),
		byNamespace: make(map[string][]*policy),
		groups:      make(map[identity.Handle]*group),
		namespaces:  make(map[string]map[*group]struct{}),
		programs:    make(map[string]*Program),
		pending:     make(map[netip.Addr]*endpoint.Endpoint),
		stale:       make(map[*group]struct{}),
		pages:       make(map[podKey]*page),
		facts:       facts{untold: make(map[podKey]struct{})},
		cluster:     new(bart.Lite),
		local:       new(bart.Lite),
		last: &Snapshot{
			table: new(bart.Table[entry]), cluster: new(bart.Lite), local: new(bart.Lite), node: cfg.Node,
			audit: cfg.Audit,
		},
	}
}

// Work returns the counters.
func (m *Model) Work() Work { return m.work }

// Policies returns the number of policies in force.
func (m *Model) Policies() int { return len(m.policies) }

// ApplyEndpoints takes over new owners of addresses.
func (m *Model) ApplyEndpoints(changes []endpoint.Change) {
	for _, c := range changes {
		m.setOwner(c.Addr, c.New)
	}
}

func (m *Model) setOwner(a netip.Addr, ep *endpoint.Endpoint) {
	old := m.owner(a)
	if old == ep {
		return
	}
	m.pending[a] = ep
	if m.isSubject(old) && (ep == nil || keyOfPod(ep) != keyOfPod(old)) {
		m.forgetPage(keyOfPod(old))
	}
	was, is := m.isSubject(old), m.isSubject(ep)
	if was && is && old.Identity == ep.Identity {
		return
	}
	if was {
		delete(m.groups[old.Identity].addrs, a)
		m.stale[m.groups[old.Identity]] = struct{}{} // it may be empty now
	}
	if is {
		m.group(ep.Identity).addrs[a] = struct{}{}
	}
}

// owner is the present owner of an address, committed or not.
func (m *Model) owner(a netip.Addr) *endpoint.Endpoint {
	if ep, ok := m.pending[a]; ok {
		return ep
	}
	return m.last.Endpoint(a)
}

func (m *Model) isSubject(ep *endpoint.Endpoint) bool {
	return ep != nil && ep.Kind == identity.Pod && (m.cfg.Node == "" || ep.Node == m.cfg.Node)
}

// group finds the group of an identity, or makes it and finds its policies.
func (m *Model) group(h identity.Handle) *group {
	if g := m.groups[h]; g != nil {
		return g
	}
	g := &group{identity: h, value: h.Identity(), addrs: make(map[netip.Addr]struct{})}
	for _, list := range [...][]*policy{m.byNamespace[g.value.Namespace], m.wide} {
		for _, p := range list {
			if m.selects(p, g) {
				g.policies = append(g.policies, p)
			}
		}
	}
	slices.SortFunc(g.policies, comparePolicies)
	m.groups[h] = g
	in := m.namespaces[g.value.Namespace]
	if in == nil {
		in = make(map[*group]struct{})
		m.namespaces[g.value.Namespace] = in
	}
	in[g] = struct{}{}
	m.stale[g] = struct{}{}
	return g
}

func (m *Model) selects(p *policy, g *group) bool {
	m.work.Matches++
	return p.Subject.Matches(&g.value)
}

// SetPodCIDRs says where pod addresses can lie: those of the whole cluster, and those of this node, which are part of
// the former. Addresses in them that have no owner are held until they have, and local ones are never let pass.
func (m *Model) SetPodCIDRs(cluster, local []netip.Prefix) {
	c, l := prefixSet(slices.Concat(cluster, local)), prefixSet(local)
	if !c.Equal(m.cluster) || !l.Equal(m.local) {
		m.cluster, m.local, m.ranges = c, l, true
	}
}

func prefixSet(list []netip.Prefix) *bart.Lite {
	set := new(bart.Lite)
	for _, p := range list {
		if p.IsValid() {
			set.Insert(p.Masked())
		}
	}
	return set
}

// SetPolicy adds a policy, or replaces the one with the same Ref. A policy with the same content changes nothing. The
// policy must not be changed afterwards.
func (m *Model) SetPolicy(src *rule.Policy) {
	old := m.policies[src.Ref]
	if old != nil && reflect.DeepEqual(old.Policy, src) {
		return
	}
	p := m.prepare(src, old)
	m.policies[src.Ref] = p
	m.unlist(old)
	m.list(p)
	if old != nil {
		for g := range m.candidates(old) {
			if i, ok := slices.BinarySearchFunc(g.policies, old, comparePolicies); ok {
				g.policies = slices.Delete(g.policies, i, i+1)
				m.stale[g] = struct{}{}
			}
		}
	}
	for g := range m.candidates(p) {
		if m.selects(p, g) {
			i, _ := slices.BinarySearchFunc(g.policies, p, comparePolicies)
			g.policies = slices.Insert(g.policies, i, p)
			m.stale[g] = struct{}{}
		}
	}
}

// DeletePolicy removes a policy; one that is not there is no error.
func (m *Model) DeletePolicy(ref rule.Ref) {
	old := m.policies[ref]
	if old == nil {
		return
	}
	delete(m.policies, ref)
	m.unlist(old)
	for g := range m.candidates(old) {
		if i, ok := slices.BinarySearchFunc(g.policies, old, comparePolicies); ok {
			g.policies = slices.Delete(g.policies, i, i+1)
			m.stale[g] = struct{}{}
		}
	}
}

// prepare compiles what is new. A direction that is as before keeps its serial, and so do the Programs made of it.
func (m *Model) prepare(src *rule.Policy, old *policy) *policy {
	p := &policy{Policy: src, audit: src.Audit || m.cfg.Audit}
	for d, dir := range map[Direction]*rule.Direction{Ingress: src.Ingress, Egress: src.Egress} {
		if old != nil && old.sides[d] != nil && p.audit == old.audit && src.Tier == old.Tier &&
			src.Priority == old.Priority &&
			reflect.DeepEqual(old.direction(d), dir) {
			p.sides[d] = old.sides[d]
			continue
		}
		p.sides[d] = newSide(p, dir, m.nextSerial())
	}
	return p
}

func (p *policy) direction(d Direction) *rule.Direction {
	if d == Ingress {
		return p.Policy.Ingress
	}
	return p.Policy.Egress
}

func (m *Model) nextSerial() uint64 {
	m.serial++
	return m.serial
}

// candidates yields the groups that a policy can select.
func (m *Model) candidates(p *policy) func(func(*group) bool) {
	return func(yield func(*group) bool) {
		if p.Subject.Namespaces == nil {
			for g := range m.namespaces[p.Subject.Namespace] {
				if !yield(g) {
					return
				}
			}
			return
		}
		for _, g := range m.groups {
			if !yield(g) {
				return
			}
		}
	}
}

func (m *Model) list(p *policy) {
	if p.Subject.Namespaces != nil {
		m.wide = append(m.wide, p)
		return
	}
	ns := p.Subject.Namespace
	m.byNamespace[ns] = append(m.byNamespace[ns], p)
}

func (m *Model) unlist(p *policy) {
	if p == nil {
		return
	}
	if p.Subject.Namespaces != nil {
		m.wide = remove(m.wide, p)
		return
	}
	ns := p.Subject.Namespace
	if m.byNamespace[ns] = remove(m.byNamespace[ns], p); len(m.byNamespace[ns]) == 0 {
		delete(m.byNamespace, ns)
	}
}

func remove(list []*policy, p *policy) []*policy {
	i := slices.Index(list, p)
	last := len(list) - 1
	list[i], list[last] = list[last], nil
	return list[:last]
}

func comparePolicies(a, b *policy) int { return rule.Compare(a.Policy, b.Policy) }
