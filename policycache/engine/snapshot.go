package engine

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
)

// Snapshot is the state of the cluster at one moment, as far as verdicts depend on it. It is immutable, safe for
// concurrent use, and shares what did not change with the snapshots before and after it.
type Snapshot struct {
	table *bart.Table[entry]
	// cluster and local are the pod CIDRs of the whole cluster and those of this node.
	cluster, local *bart.Lite
	node           string
	generation     uint64
	audit          bool // Config.Audit
}

// entry is what is known of an address.
type entry struct {
	ep *endpoint.Endpoint
	// ingress and egress are nil where no policy covers the direction, and for all that is not a subject.
	ingress, egress *Program
	// names are what the pod has learned that egress asks for. Only subjects, pods whose policies are enforced here, have
	// any; it is noNames for most of them.
	names *names
}

// Generation grows with every change that can alter a verdict.
func (s *Snapshot) Generation() uint64 { return s.generation }

// Endpoint returns the owner of an address, or nil.
func (s *Snapshot) Endpoint(a netip.Addr) *endpoint.Endpoint {
	e, _ := s.table.Lookup(a)
	return e.ep
}

// Endpoints yields all addresses that have an owner, in no order.
func (s *Snapshot) Endpoints() iter.Seq2[netip.Addr, *endpoint.Endpoint] {
	return func(yield func(netip.Addr, *endpoint.Endpoint) bool) {
		for p, e := range s.table.All() {
			if !yield(p.Addr(), e.ep) {
				return
			}
		}
	}
}

// Subject tells what the kernel must know of an address.
func (s *Snapshot) Subject(a netip.Addr) Subject {
	e, _ := s.table.Lookup(a)
	return e.toSubject(a)
}

// Subjects yields the pods of this node, in no order.
func (s *Snapshot) Subjects() iter.Seq[Subject] {
	return func(yield func(Subject) bool) {
		for p, e := range s.table.All() {
			if e.subject() && !yield(e.toSubject(p.Addr())) {
				return
			}
		}
	}
}

// Subject is what the kernel must know of a local pod's address.
type Subject struct {
	Addr netip.Addr
	// Present: a pod of this node owns the address.
	Present bool
	// Ingress and Egress: policies cover the direction, so its flows are to be judged.
	Ingress, Egress bool
	// IngressAudit and EgressAudit: they do, and all of them are in audit mode.
	IngressAudit, EgressAudit bool
	// Names: rules have domain names for egress peers, so the pod's questions to DNS servers are to be followed.
	Names bool
}

// Delta is what a Commit changed.
type Delta struct {
	// Affected holds the addresses, local or not, for which some verdict can differ from the last snapshot, sorted.
	// Verdicts between two addresses that are not listed are the same as before.
	Affected []netip.Addr
	// Named holds further addresses, of pods of this node: what differs for them is only what they have learned, or what
	// has lapsed, under domain names. Verdicts on established flows are as before, or allow what was denied. Sorted.
	Named []netip.Addr
	// Subjects holds the addresses whose kernel-side state differs, as it is now, sorted by address.
	Subjects []Subject
	// Ranges tells that the pod CIDRs changed: unknown addresses in them may be held now, or no longer.
	Ranges bool
}

func (e *entry) toSubject(a netip.Addr) Subject {
	return Subject{
		Addr: a, Present: e.subject(), Ingress: e.ingress != nil, Egress: e.egress != nil,
		IngressAudit: e.ingress.onlyAudits(), EgressAudit: e.egress.onlyAudits(),
		Names: e.egress != nil && e.egress.names != nil,
	}
}

// sameVerdicts tells whether every flow of the address is judged alike under both entries, names aside. The owner's
// name may differ: a pod that took over the address of one just like it.
func (e *entry) sameVerdicts(o *entry) bool {
	if (e.ep == nil) != (o.ep == nil) || e.subject() != o.subject() || e.ingress != o.ingress || e.egress != o.egress {
		return false
	}
	return e.ep == o.ep || e.ep.Identity == o.ep.Identity && e.ep.Ports == o.ep.Ports && e.ep.Node == o.ep.Node
}

// judges tells whether there are policies in a program for which packets are refused that cannot be judged: those in
// audit mode refuse none, unless nothing is refused anyway.
func (s *Snapshot) judges(p *Program) bool { return p != nil && (p.enforced || s.audit) }

func (p *Program) onlyAudits() bool { return p != nil && !p.enforced }

// subject tells a pod whose policies are enforced here.
func (e *entry) subject() bool { return e.names != nil }

// isPod and isNode tell what owns the address; neither holds for external ones.
func (e *entry) isPod() bool  { return e.ep != nil && e.ep.Kind == identity.Pod }
func (e *entry) isNode() bool { return e.ep != nil && e.ep.Kind == identity.Node }

// prefixOf is the table's key for an address.
func prefixOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
