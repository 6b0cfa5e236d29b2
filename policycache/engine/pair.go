package engine

import (
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// pairKey is everything that the outcome of one direction depends on, except for protocol and port. Each part
// changes when, and only when, what it stands for does, so a cached pair stays right for ever: nothing is ever
// invalidated, unused pairs only age out. The struct has no padding, so that it is hashed in one go.
type pairKey struct {
	// program is its serial number.
	program uint64
	// peer is the zero handle for external addresses, and for nodes if the program does not look at their labels.
	peer identity.Handle
	// class is the peer's class among the program's address blocks, and in the upper half the number of the class of
	// names that the subject has learned the address under.
	class uint64
	// ports are those of the destination, if the program has rules with named ports.
	ports *endpoint.Ports
}

// pair is the outcome of one program for one kind of peer.
type pair struct {
	tables [lanes]portTable
}

// compiler makes pairs. It is reused; compiling allocates the pair and its tables only.
type compiler struct {
	canvases [lanes]canvas
	// examined counts the rules looked at.
	examined uint64
}

// compile makes the pair of a program and a kind of peer. Policies in audit mode cost a second look at the rules, and
// only their own subjects.
func (c *compiler) compile(
	p *Program, peer identity.Handle, class uint32, names *nameClass, named *endpoint.Ports,
) *pair {
	id := peer.Identity()
	made := c.merge(p, false, &id, class, names, named)
	if p.audited {
		would := c.merge(p, true, &id, class, names, named)
		for l := range made.tables {
			made.tables[l] = beside(&made.tables[l], &would.tables[l])
		}
	}
	return made
}

// merge merges the rules of all tiers into one table per lane: what a rule takes, no later rule gets. audit says
// whether
// policies in audit mode count.
func (c *compiler) merge(
	p *Program, audit bool, id *identity.Identity, class uint32, names *nameClass, named *endpoint.Ports,
) *pair {
	isolated := p.isolated
	if audit {
		isolated = p.wouldIsolate
	}
	for l := range c.canvases {
		c.canvases[l].reset()
	}
	next := c.tier(p, 0, rule.Admin, audit, id, class, names, named)
	next = c.tier(p, next, rule.Namespaced, audit, id, class, names, named)
	if isolated != nil {
		c.takeAll(isolated)
	}
	c.tier(p, next, rule.Baseline, audit, id, class, names, named)
	c.takeAll(notIsolated)
	made := new(pair)
	for l := range c.canvases {
		made.tables[l] = c.canvases[l].table()
	}
	return made
}

// tier applies the rules of one tier, which begin at step i, and returns where the next tier begins.
func (c *compiler) tier(
	p *Program, i int, t rule.Tier, audit bool, id *identity.Identity, class uint32, names *nameClass,
	named *endpoint.Ports,
) int {
	for ; i < len(p.steps) && p.steps[i].tier == t; i++ {
		s := &p.steps[i]
		if s.audit && !audit || c.closed() {
			continue
		}
		c.examined++
		if s.selects(p, id, class, names) {
			c.apply(s.code, named)
		}
	}
	for l := range c.canvases {
		c.canvases[l].nextTier()
	}
	return i
}

// closed tells whether the tier has nothing left to decide.
func (c *compiler) closed() bool {
	for l := range c.canvases {
		if len(c.canvases[l].open) > 0 {
			return false
		}
	}
	return true
}

func (c *compiler) takeAll(d *Decision) {
	for l := range c.canvases {
		c.canvases[l].takeAll(d)
	}
}

// apply gives the rule's ports to its decision.
func (c *compiler) apply(r *code, named *endpoint.Ports) {
	if r.rule.Ports == nil {
		c.takeAll(r.decision)
		return
	}
	for i := range r.rule.Ports {
		port := &r.rule.Ports[i]
		for l, proto := range laneProtos {
			switch {
			case port.Proto != proto && (port.Proto != 0 || port.Name == ""):
			case port.Name == "":
				c.canvases[l].take(span{port.First, port.Last}, r.decision)
			case named != nil:
				for j := range named.List {
					if n := &named.List[j]; n.Name == port.Name && n.Proto == proto {
						c.canvases[l].take(span{n.Port, n.Port}, r.decision)
					}
				}
			}
		}
	}
}

// selects tells whether the rule is about the peer.
func (s *step) selects(p *Program, id *identity.Identity, class uint32, names *nameClass) bool {
	peers := s.rule.Peers
	if peers == nil {
		return true
	}
	block := 0
	for i := range peers {
		switch peers[i].Kind {
		case rule.Addresses:
			if p.blocks.contains(class, s.blocks[block]) {
				return true
			}
			block++
		case rule.Names:
			if names.has(peers[i].Name) {
				return true
			}
		default:
			if peers[i].Matches(id) {
				return true
			}
		}
	}
	return false
}
