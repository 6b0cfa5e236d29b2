package engine

import (
	"net/netip"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
)

// Evaluator gives verdicts. It owns a cache of compiled pairs, so it belongs to one goroutine; each queue thread has
// one of its own and no verdict takes a lock. The cache serves any number of snapshots: see pairKey.
type Evaluator struct {
	pairs    *simplelru.LRU[pairKey, *pair]
	compiler compiler
	stats    Stats
	// lapsed: names whose time is over count too.
	lapsed bool
}

// Stats counts what an Evaluator has done since it was made.
type Stats struct {
	// Verdicts counts calls of Judge.
	Verdicts uint64
	// Hits and Misses count look-ups in the cache of compiled pairs: one for each direction that policies cover, and
	// for TCP packets in mid-stream up to two.
	Hits, Misses uint64
	// Rules counts rules looked at, which happens on misses only.
	Rules uint64
}

// NewEvaluator makes an evaluator that keeps up to pairs compiled pairs; the least recently used go first. A pair whose
// rules name no ports takes about 400 bytes, one with ports 10 more for each range. At least one is kept.
func NewEvaluator(pairs int) *Evaluator {
	lru, err := simplelru.NewLRU[pairKey, *pair](max(pairs, 1), nil)
	if err != nil {
		panic(err) // only for sizes below one
	}
	return &Evaluator{pairs: lru}
}

// Stats returns the counters.
func (e *Evaluator) Stats() Stats {
	s := e.stats
	s.Rules = e.compiler.examined
	return s
}

// Pairs returns the number of compiled pairs in the cache.
func (e *Evaluator) Pairs() int { return e.pairs.Len() }

// Judge gives the verdict for one packet. It is total: any flow gets an answer, and what cannot be told is denied. held
// says that the packet has waited long enough for its addresses to become known; without it the answer may be Hold.
//
// Judge allocates nothing where the pairs of identities that it meets are in the cache. A new pair costs one look at
// each rule of the policies that select the subject and at most 12 allocations.
func (e *Evaluator) Judge(s *Snapshot, f *packet.Flow, hook Hook, held bool) Verdict {
	e.stats.Verdicts++
	var c situation
	v, done := c.open(s, f, hook, held || s.audit)
	if done {
		if s.audit {
			v.Action = Allow
		}
		return v
	}
	l := laneOf(f)
	v.Egress = e.decide(c.src.egress, &c.src, c.host, &c.dst, f.Dst, c.dst.ep, l, f.DstPort)
	v.Ingress = e.decide(c.dst.ingress, &c.dst, c.host, &c.src, f.Src, c.dst.ep, l, f.DstPort)
	v.conclude()
	if f.MidStream() && (v.Action == Deny || v.Would() == Deny) {
		egress := e.decide(c.dst.egress, &c.dst, c.host, &c.src, f.Src, c.src.ep, l, f.SrcPort)
		ingress := e.decide(c.src.ingress, &c.src, c.host, &c.dst, f.Dst, c.src.ep, l, f.SrcPort)
		v.reverse(egress, ingress)
	}
	return v
}

// JudgeEstablished is Judge for a flow that exists, as if all names that its pods have learned still held: a name that
// has lapsed is none to connect to, and no reason to cut a connection.
func (e *Evaluator) JudgeEstablished(s *Snapshot, f *packet.Flow, hook Hook) Verdict {
	e.lapsed = true
	v := e.Judge(s, f, hook, true)
	e.lapsed = false
	return v
}

// decide looks one direction up: the Program p is one of side, which is judged, peer and addr are the other side, dst
// is the destination of the orientation that is asked about.
func (e *Evaluator) decide(
	p *Program, side *entry, host bool, peer *entry, addr netip.Addr, dst *endpoint.Endpoint, l lane, port uint16,
) *Decision {
	if p == nil {
		if side.subject() {
			return notIsolated
		}
		return nil
	}
	if host {
		if p = p.host; p == nil {
			return ownNode
		}
	}
	k := pairKey{program: p.serial}
	if peer.ep != nil && (peer.ep.Kind == identity.Pod || p.nodes) {
		k.peer = peer.ep.Identity
	}
	if p.blocks != nil {
		k.class = p.blocks.classOf(addr)
	}
	if p.names != nil && peer.ep == nil {
		k.class |= side.names.class(addr, e.lapsed).upper()
	}
	if p.named && dst != nil {
		k.ports = dst.Ports
	}
	found, ok := e.pairs.Get(k)
	if ok {
		e.stats.Hits++
	} else {
		e.stats.Misses++
		var names *nameClass
		if k.class>>32 != 0 {
			names = side.names.class(addr, e.lapsed)
		}
		found = e.compiler.compile(p, k.peer, uint32(k.class), names, k.ports)
		e.pairs.Add(k, found)
	}
	return found.tables[l].lookup(port)
}

// conclude draws the verdict from the decisions of both directions.
func (v *Verdict) conclude() {
	switch {
	case v.Egress != nil && !v.Egress.Allow:
		v.Reason, v.Direction = v.Egress.Reason, Egress
		return
	case v.Ingress != nil && !v.Ingress.Allow:
		v.Reason, v.Direction = v.Ingress.Reason, Ingress
		return
	}
	v.Action = Allow
	switch {
	case v.Egress == nil && v.Ingress == nil:
		v.Reason = NoSubject
	case v.Egress == nil:
		v.Reason = v.Ingress.Reason
	case v.Ingress == nil:
		v.Reason = v.Egress.Reason
	case v.Ingress.Reason == NotIsolated:
		v.Reason = v.Egress.Reason
	default:
		v.Reason = v.Ingress.Reason
	}
}

// reverse allows a denied packet in mid-stream if the other orientation, with these decisions, is allowed, and notes
// whether it would be.
func (v *Verdict) reverse(egress, ingress *Decision) {
	if v.Action == Deny && egress.allows() && ingress.allows() {
		v.Action, v.Reason, v.Direction = Allow, MidStreamReverse, NoDirection
		return
	}
	v.wouldAnswer = egress.would().allows() && ingress.would().allows()
}
