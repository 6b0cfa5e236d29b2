package engine

import (
	"encoding/binary"

	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// policy is a rule.Policy made ready for programs: what can be computed once per policy is computed here.
type policy struct {
	*rule.Policy
	// audit: the policy is evaluated and not enforced.
	audit bool
	// sides are indexed by Direction; nil where the policy does not cover it.
	sides [Egress + 1]*side
}

// side is one direction of a policy.
type side struct {
	// serial identifies the content: it changes when, and only when, this direction of the policy does.
	serial uint64
	codes  []code
}

// code is one rule with its outcome.
type code struct {
	rule *rule.Rule
	// decision is nil for rules that pass to the next tier.
	decision *Decision
	// blocks are the keys of the rule's address blocks, in the order of its peers of that kind.
	blocks []blockKey
	// audit is that of the policy.
	audit bool
}

// newSide prepares one direction; nil in gives nil out.
func newSide(p *policy, d *rule.Direction, serial uint64) *side {
	if d == nil {
		return nil
	}
	s := &side{serial: serial, codes: make([]code, len(d.Rules))}
	refs := []rule.Ref{p.Ref}
	for i := range d.Rules {
		r := &d.Rules[i]
		c := code{rule: r, audit: p.audit}
		switch r.Action {
		case rule.Accept:
			c.decision = &Decision{Allow: true, Reason: AllowedByRule, Tier: p.Tier, Policies: refs, Rule: i, RuleName: r.Name}
		case rule.Deny:
			c.decision = &Decision{Reason: DeniedByRule, Tier: p.Tier, Policies: refs, Rule: i, RuleName: r.Name}
		}
		for j := range r.Peers {
			if b := r.Peers[j].Block; b != nil {
				c.blocks = append(c.blocks, keyOf(b))
			}
		}
		s.codes[i] = c
	}
	return s
}

// Program is all that policies say about one direction of the pods that they select. Pods under the same policies
// share one Program, and a Program never changes: another list of policies is another Program.
type Program struct {
	// serial is unique for the life of the Model and never used again, so that caches may outlive the Program
	// without keeping it in memory.
	serial    uint64
	direction Direction
	// policies are in the order of evaluation.
	policies []*policy
	steps    []step
	// isolated is what happens to flows that no rule of the NetworkPolicy tier allows; nil if no policy isolates.
	isolated *Decision
	// audited: there are policies in audit mode among them, and wouldIsolate is what isolated was if those were enforced.
	audited      bool
	enforced     bool // there are others
	wouldIsolate *Decision
	blocks       *blocks
	// names are the domain names that its rules have for peers, sorted; nil for most Programs.
	names []domain.Pattern
	// named and nodes tell whether any rule depends on named ports, and on the labels of nodes.
	named, nodes bool
	// host is the Program for traffic with the pod's own node; nil if that is always allowed.
	host *Program

	key  string // in Model.programs
	refs int    // groups that use it
}

// step is one rule of a Program.
type step struct {
	*code
	tier rule.Tier
	// blocks are the numbers in Program.blocks of the rule's address blocks, in the order of its peers.
	blocks []int32
}

// programKey is the identity of a list of policies for one direction.
func programKey(buf []byte, d Direction, policies []*policy) []byte {
	buf = append(buf[:0], byte(d))
	for _, p := range policies {
		if s := p.sides[d]; s != nil {
			buf = binary.BigEndian.AppendUint64(buf, s.serial)
		}
	}
	return buf
}

// newProgram compiles the policies, which are in the order of evaluation, for one direction; those that do not cover
// it are left out. serial gives numbers that were never used.
func newProgram(d Direction, policies []*policy, serial func() uint64) *Program {
	p := &Program{serial: serial(), direction: d}
	var (
		set          blockSet
		cited, would []rule.Ref
		admin        bool
	)
	for _, pol := range policies {
		s := pol.sides[d]
		if s == nil {
			continue
		}
		p.policies = append(p.policies, pol)
		p.audited, p.enforced = p.audited || pol.audit, p.enforced || !pol.audit
		switch {
		case pol.Tier != rule.Namespaced:
			admin = true
		case pol.audit:
			would = append(would, pol.Ref)
		default:
			cited, would = append(cited, pol.Ref), append(would, pol.Ref)
		}
		for i := range s.codes {
			p.add(&s.codes[i], pol.Tier, &set)
		}
	}
	p.blocks = set.build()
	p.isolated, p.wouldIsolate = isolation(cited), isolation(would)
	if admin {
		p.host = p.forHost(serial())
	}
	return p
}

// isolation is the decision about flows that none of these policies allows; nil for none.
func isolation(by []rule.Ref) *Decision {
	if by == nil {
		return nil
	}
	return &Decision{Reason: NoRuleMatches, Tier: rule.Namespaced, Policies: by, Rule: -1}
}

func (p *Program) add(c *code, tier rule.Tier, set *blockSet) {
	s := step{code: c, tier: tier}
	next := 0
	for i := range c.rule.Peers {
		switch peer := &c.rule.Peers[i]; peer.Kind {
		case rule.Addresses:
			s.blocks = append(s.blocks, set.number(c.blocks[next], peer.Block))
			next++
		case rule.Nodes:
			p.nodes = true
		case rule.Names:
			p.addName(peer.Name)
		}
	}
	for i := range c.rule.Ports {
		p.named = p.named || c.rule.Ports[i].Name != ""
	}
	p.steps = append(p.steps, s)
}

// forHost derives the Program for traffic with the pod's own node: in the NetworkPolicy tier it is always allowed.
func (p *Program) forHost(serial uint64) *Program {
	h := *p
	h.serial = serial
	h.steps = nil
	for _, s := range p.steps {
		if s.tier != rule.Namespaced {
			h.steps = append(h.steps, s)
		}
	}
	if h.isolated != nil {
		h.isolated = ownNode
	}
	if h.wouldIsolate != nil {
		h.wouldIsolate = ownNode
	}
	return &h
}
