package engine

import (
	"net/netip"

	"github.com/firstpacket/firstpacket/classify/packet"
)

// situation is what a flow looks like in a snapshot, before any policy is asked.
type situation struct {
	src, dst entry
	// host: the flow is between a pod and the node it runs on.
	host bool
}

// open looks both addresses up. done tells that the verdict is final without any policy.
func (c *situation) open(s *Snapshot, f *packet.Flow, hook Hook, held bool) (v Verdict, done bool) {
	if !f.Src.IsValid() || !f.Dst.IsValid() {
		return Verdict{Reason: Malformed}, true
	}
	c.src, _ = s.table.Lookup(f.Src)
	c.dst, _ = s.table.Lookup(f.Dst)
	v.Src, v.Dst = c.src.ep, c.dst.ep
	if f.Form == packet.Malformed {
		c.malformed(s, f, hook, &v)
		return v, true
	}
	if f.Src == f.Dst {
		v.Action, v.Reason = Allow, Hairpin
		return v, true
	}
	c.host = c.ownNode(s, f, hook)
	if c.src.ep == nil || c.dst.ep == nil {
		done = c.unknown(s, f, hook, held, &v)
	}
	return v, done
}

// ownNode tells whether one side is the node that the other, a pod, runs on. A source address proves nothing in a
// packet that came in from elsewhere: only what the node itself sends is trusted to be from it. Packets that arrive at
// the Input hook are for the node, whichever of its addresses they carry.
func (c *situation) ownNode(s *Snapshot, f *packet.Flow, hook Hook) bool {
	if c.src.subject() && !c.dst.isPod() {
		return hook == Input || c.dst.isNode() && c.dst.ep.Node == c.src.ep.Node
	}
	if c.dst.subject() && hook == Output && !c.src.isPod() {
		// The node's address inside its own pod CIDR, a bridge's for instance, is in no object of the API.
		return c.src.isNode() && c.src.ep.Node == c.dst.ep.Node || c.src.ep == nil && s.local.Contains(f.Src)
	}
	return false
}

// unknown deals with addresses that belong to nobody known. Inside the pod CIDRs that can only be because the cluster
// has not told yet, so the packet is worth waiting for if the answer can matter. An address of this node's own pods
// must never pass unjudged.
func (c *situation) unknown(s *Snapshot, f *packet.Flow, hook Hook, held bool, v *Verdict) (done bool) {
	if c.host {
		return false
	}
	// On the Output hook the node itself is the source, on Input the destination, so neither is a pod.
	srcLocal := c.src.ep == nil && hook != Output && s.local.Contains(f.Src)
	dstLocal := c.dst.ep == nil && hook != Input && s.local.Contains(f.Dst)
	if dstLocal && !srcLocal && hook == Output && c.src.isNode() && c.src.ep.Node == s.node {
		v.Action, v.Reason = Allow, OwnNode
		return true
	}
	if held {
		switch {
		case srcLocal:
			v.Reason, v.Direction = UnknownEndpoint, Egress
		case dstLocal:
			v.Reason, v.Direction = UnknownEndpoint, Ingress
		}
		return srcLocal || dstLocal
	}
	switch {
	case srcLocal, c.src.ep == nil && s.judges(c.dst.ingress) && hook != Output && s.cluster.Contains(f.Src):
		v.Awaited = f.Src
	case dstLocal, c.dst.ep == nil && s.judges(c.src.egress) && s.cluster.Contains(f.Dst):
		v.Awaited = f.Dst
	default:
		return false
	}
	v.Action, v.Reason = Hold, AwaitingEndpoint
	return true
}

// malformed refuses packets that cannot be read if policies cover a direction they may belong to, or if nobody knows
// whether they do.
func (c *situation) malformed(s *Snapshot, f *packet.Flow, hook Hook, v *Verdict) {
	v.Reason = Malformed
	switch {
	case s.judges(c.src.egress) || c.unknownLocal(s, &c.src, f.Src, hook != Output):
		v.Direction = Egress
	case s.judges(c.dst.ingress) || c.unknownLocal(s, &c.dst, f.Dst, hook != Input):
		v.Direction = Ingress
	default:
		v.Action, v.Reason = Allow, MalformedNotIsolated
	}
}

func (c *situation) unknownLocal(s *Snapshot, e *entry, a netip.Addr, canBePod bool) bool {
	return e.ep == nil && canBePod && s.local.Contains(a)
}
