package engine

import (
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/endpoint"
)

// Commit makes what was changed since the last Commit visible in a new snapshot. The delta is nil if no verdict can
// differ from the last snapshot's, whose generation the new one then keeps.
func (m *Model) Commit() (*Snapshot, *Delta) {
	if len(m.pending) == 0 && len(m.stale) == 0 && !m.ranges {
		return m.last, nil
	}
	for g := range m.stale {
		m.refresh(g)
	}
	m.stale = emptied(m.stale)
	if m.ranges {
		m.renewAll()
	}

	next := *m.last
	next.cluster, next.local = m.cluster, m.local
	delta := m.write(&next)
	delta.Ranges = m.ranges
	m.ranges = false
	m.pending = emptied(m.pending)
	m.last = &next
	if len(delta.Affected)+len(delta.Named) == 0 && !delta.Ranges {
		return m.last, nil
	}
	m.last.generation++
	slices.SortFunc(delta.Affected, netip.Addr.Compare)
	slices.SortFunc(delta.Named, netip.Addr.Compare)
	slices.SortFunc(delta.Subjects, func(a, b Subject) int { return a.Addr.Compare(b.Addr) })
	return m.last, delta
}

// refresh gives the group the Programs of its policies, and has the entries of its addresses written if they differ.
func (m *Model) refresh(g *group) {
	ingress, egress := g.ingress, g.egress
	if len(g.addrs) == 0 {
		delete(m.groups, g.identity)
		ns := g.value.Namespace
		if delete(m.namespaces[ns], g); len(m.namespaces[ns]) == 0 {
			delete(m.namespaces, ns)
		}
		g.ingress, g.egress = nil, nil
	} else {
		g.ingress, g.egress = m.program(Ingress, g.policies), m.program(Egress, g.policies)
	}
	m.release(ingress)
	m.release(egress)
	if g.ingress == ingress && g.egress == egress {
		return
	}
	for a := range g.addrs {
		if _, ok := m.pending[a]; !ok {
			m.pending[a] = m.last.Endpoint(a)
		}
	}
}

// program finds or makes the Program of the policies for a direction; nil if none of them covers it.
func (m *Model) program(d Direction, policies []*policy) *Program {
	m.key = programKey(m.key, d, policies)
	if len(m.key) == 1 {
		return nil
	}
	p := m.programs[string(m.key)]
	if p == nil {
		m.work.Programs++
		p = newProgram(d, policies, m.nextSerial)
		p.key = string(m.key)
		m.programs[p.key] = p
	}
	p.refs++
	return p
}

func (m *Model) release(p *Program) {
	if p == nil {
		return
	}
	if p.refs--; p.refs == 0 {
		delete(m.programs, p.key)
	}
}

// bulk is the part of the table's size from which on a copy of the whole table is cheaper than copying the path to
// each entry that is written.
const bulk = 16

// write brings the pending entries into the snapshot's table.
func (m *Model) write(s *Snapshot) *Delta {
	delta := new(Delta)
	set, unset := s.persist, s.unpersist
	if len(m.pending) > s.table.Size()/bulk {
		s.table = s.table.Clone()
		set, unset = s.insert, s.remove
	}
	for a, ep := range m.pending {
		old, had := m.last.table.Lookup(a)
		now := m.entry(ep)
		switch {
		case now == old:
			continue
		case ep != nil:
			set(prefixOf(a), now)
		case had:
			unset(prefixOf(a))
		}
		m.work.Entries++
		if !now.sameVerdicts(&old) {
			delta.Affected = append(delta.Affected, a)
		} else if now.names != old.names {
			delta.Named = append(delta.Named, a)
		}
		if subject := now.toSubject(a); subject != old.toSubject(a) {
			delta.Subjects = append(delta.Subjects, subject)
		}
	}
	return delta
}

// entry is what the table holds for an address of this owner.
func (m *Model) entry(ep *endpoint.Endpoint) entry {
	e := entry{ep: ep}
	if m.isSubject(ep) {
		g := m.groups[ep.Identity]
		e.ingress, e.egress = g.ingress, g.egress
		e.names = m.namesOf(ep, g.egress)
	}
	return e
}

func (s *Snapshot) insert(p netip.Prefix, e entry)  { s.table.Insert(p, e) }
func (s *Snapshot) remove(p netip.Prefix)           { s.table.Delete(p) }
func (s *Snapshot) persist(p netip.Prefix, e entry) { s.table = s.table.InsertPersist(p, e) }
func (s *Snapshot) unpersist(p netip.Prefix)        { s.table = s.table.DeletePersist(p) }

// emptied gives an empty map. Maps keep the room of their largest time, and going over it takes time in proportion; the
// first Commit has every address of the cluster.
func emptied[K comparable, V any](m map[K]V) map[K]V {
	if len(m) > 1024 {
		return make(map[K]V)
	}
	clear(m)
	return m
}
