package engine

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Explanation is the reasoning behind one verdict. It is made for people and for JSON.
type Explanation struct {
	Generation  uint64 `json:"generation"`
	Source      Party  `json:"source"`
	Destination Party  `json:"destination"`
	Protocol    string `json:"protocol"`
	Hook        Hook   `json:"hook"`

	Action    Action    `json:"action"`
	Reason    Reason    `json:"reason"`
	Direction Direction `json:"direction,omitempty"`

	// Would is the Action if nothing was in audit mode.
	Would Action `json:"would"`

	// Egress and Ingress are nil where the side is no pod of this node, or the verdict needed no policy.
	Egress  *Judgement `json:"egress,omitempty"`
	Ingress *Judgement `json:"ingress,omitempty"`
	// Reverse is the other orientation of a TCP packet in mid-stream, if the packet's own was denied.
	Reverse *Orientation `json:"reverse,omitempty"`
	// Awaited is the address that nobody is known to own, with Hold.
	Awaited *netip.Addr `json:"awaited,omitempty"`
}

// Orientation is a pair of judgements.
type Orientation struct {
	Egress  *Judgement `json:"egress,omitempty"`
	Ingress *Judgement `json:"ingress,omitempty"`
}

// Party is one side of the flow.
type Party struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
	// Kind is pod, node or external.
	Kind            string            `json:"kind"`
	Namespace       string            `json:"namespace,omitempty"`
	Name            string            `json:"name,omitempty"`
	Node            string            `json:"node,omitempty"`
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

// Judgement is the reasoning for one direction of one pod.
type Judgement struct {
	Direction Direction `json:"direction"`
	// OwnNode: the other side is the node that the pod runs on.
	OwnNode bool `json:"ownNode,omitempty"`
	// Policies are those that select the pod and cover the direction, in the order of evaluation.
	Policies []Considered `json:"policies,omitempty"`
	Decision *Decision    `json:"decision"`
}

// Considered is one policy of a judgement.
type Considered struct {
	Policy   rule.Ref  `json:"policy"`
	Tier     rule.Tier `json:"tier"`
	Priority int32     `json:"priority,omitempty"`
	// Selects prints whom the policy selects.
	Selects string `json:"selects"`
	// Isolates: the pod is isolated in the direction because of the policy.
	Isolates bool `json:"isolates,omitempty"`
	// Audit: the policy is not enforced; its rules decide what would be.
	Audit    bool           `json:"audit,omitempty"`
	Problems []rule.Problem `json:"problems,omitempty"`
	Rules    []RuleTrace    `json:"rules,omitempty"`
}

// RuleTrace says what came of one rule.
type RuleTrace struct {
	Index   int         `json:"index"`
	Name    string      `json:"name,omitempty"`
	Action  rule.Action `json:"action"`
	Matches bool        `json:"matches"`
	// Decides: the rule is the one that counted. Rules that match and do not decide came too late.
	Decides bool `json:"decides,omitempty"`
	// Why says in words what matched, or what did not.
	Why string `json:"why"`
}

// Explain judges a flow as Judge does, policy by policy and rule by rule instead of by compiled pairs.
func Explain(s *Snapshot, f *packet.Flow, hook Hook, held bool) Explanation {
	var c situation
	v, done := c.open(s, f, hook, held || s.audit)
	if done && s.audit {
		v.Action = Allow
	}
	x := Explanation{
		Generation:  s.generation,
		Source:      party(f.Src, f.SrcPort, v.Src),
		Destination: party(f.Dst, f.DstPort, v.Dst),
		Protocol:    rule.ProtoName(f.Proto),
		Hook:        hook,
	}
	if !done {
		q := question{lane: laneOf(f), proto: f.Proto, port: f.DstPort, host: c.host}
		q.named(c.dst.ep)
		x.Egress = q.judge(&c.src, c.src.egress, Egress, &c.dst, f.Dst)
		x.Ingress = q.judge(&c.dst, c.dst.ingress, Ingress, &c.src, f.Src)
		v.Egress, v.Ingress = x.Egress.decision(), x.Ingress.decision()
		v.conclude()
		if f.MidStream() && (v.Action == Deny || v.Would() == Deny) {
			q.port = f.SrcPort
			q.named(c.src.ep)
			x.Reverse = &Orientation{
				Egress:  q.judge(&c.dst, c.dst.egress, Egress, &c.src, f.Src),
				Ingress: q.judge(&c.src, c.src.ingress, Ingress, &c.dst, f.Dst),
			}
			v.reverse(x.Reverse.Egress.decision(), x.Reverse.Ingress.decision())
		}
	}
	x.Action, x.Reason, x.Direction, x.Would = v.Action, v.Reason, v.Direction, v.Would()
	if v.Awaited.IsValid() {
		x.Awaited = &v.Awaited
	}
	return x
}

func party(a netip.Addr, port uint16, ep *endpoint.Endpoint) Party {
	p := Party{Addr: a, Port: port, Kind: "external"}
	if ep != nil {
		id := ep.Identity.Identity()
		p.Kind, p.Namespace, p.Name, p.Node = ep.Kind.String(), ep.Namespace, ep.Name, ep.Node
		p.NamespaceLabels, p.Labels = id.NamespaceLabels.Map(), id.Labels.Map()
	}
	return p
}

func (j *Judgement) decision() *Decision {
	if j == nil {
		return nil
	}
	return j.Decision
}

// question is what rules are asked about, apart from the peer.
type question struct {
	lane  lane
	proto uint8
	port  uint16
	ports *endpoint.Ports
	host  bool
}

func (q *question) named(dst *endpoint.Endpoint) {
	q.ports = nil
	if dst != nil {
		q.ports = dst.Ports
	}
}

// judge walks the policies of one direction, and once more with those in audit mode if there are any.
func (q *question) judge(side *entry, p *Program, d Direction, peer *entry, addr netip.Addr) *Judgement {
	if !side.subject() {
		return nil
	}
	j := &Judgement{Direction: d, OwnNode: q.host}
	if p == nil {
		j.Decision = notIsolated
		return j
	}
	j.Policies, j.Decision = q.walk(p, false, side, peer, addr)
	if p.audited {
		policies, would := q.walk(p, true, side, peer, addr)
		for i := range policies {
			if policies[i].Audit {
				j.Policies[i] = policies[i]
			}
		}
		j.Decision = withWould(j.Decision, would)
	}
	return j
}

// walk applies the rules one by one; audit says whether policies in audit mode count. The tiers are told apart by the
// rules as they come: a rule that passes ends its tier, and the end of the NetworkPolicy tier refuses what it has not
// accepted if it isolates.
func (q *question) walk(
	p *Program, audit bool, side, peer *entry, addr netip.Addr,
) (all []Considered, by *Decision) {
	isolated := p.isolated
	if audit {
		isolated = p.wouldIsolate
	}
	if isolated != nil && q.host {
		isolated = ownNode
	}
	var passed rule.Tier
	for _, pol := range p.policies {
		if pol.Tier == rule.Baseline && by == nil {
			by = isolated
		}
		c := Considered{
			Policy: pol.Ref, Tier: pol.Tier, Priority: pol.Priority, Selects: pol.Subject.String(),
			Isolates: pol.Tier == rule.Namespaced, Audit: pol.audit, Problems: pol.Problems,
		}
		counts := (audit || !pol.audit) && (!q.host || pol.Tier != rule.Namespaced)
		codes := pol.sides[p.direction].codes
		for i := range codes {
			t := RuleTrace{Index: i, Name: codes[i].rule.Name, Action: codes[i].rule.Action}
			t.Matches, t.Why = q.matches(codes[i].rule, side, peer, addr)
			// Traffic with the own node is not subject to the rules of the NetworkPolicy tier.
			if t.Matches && by == nil && passed != pol.Tier && counts {
				t.Decides = true
				if by = codes[i].decision; by == nil {
					passed = pol.Tier
				}
			}
			c.Rules = append(c.Rules, t)
		}
		all = append(all, c)
	}
	switch {
	case by != nil:
	case isolated != nil:
		by = isolated
	case q.host && p.host == nil:
		by = ownNode
	default:
		by = notIsolated
	}
	return all, by
}

// matches tells whether the rule matches, and why.
func (q *question) matches(r *rule.Rule, side, peer *entry, addr netip.Addr) (bool, string) {
	ok, who := q.matchesPeer(r, side, peer, addr)
	if !ok {
		return false, who
	}
	ok, port := q.matchesPort(r)
	return ok, who + "; " + port
}

func (q *question) matchesPeer(r *rule.Rule, side, peer *entry, addr netip.Addr) (bool, string) {
	switch {
	case r.Peers == nil:
		return true, "the rule is for every peer"
	case len(r.Peers) == 0:
		return false, "the rule matches nobody, because a part of it could not be understood"
	}
	var tried []string
	for i := range r.Peers {
		p := &r.Peers[i]
		if p.Kind == rule.Names {
			matches, why := side.names.explain(p, peer, addr)
			if matches {
				return true, why
			}
			tried = append(tried, why)
			continue
		}
		matches := p.Block != nil && p.Block.Contains(addr)
		if peer.ep != nil && p.Block == nil {
			id := peer.ep.Identity.Identity()
			matches = p.Matches(&id)
		}
		if matches {
			return true, "the peer is among " + p.String()
		}
		tried = append(tried, p.String())
	}
	return false, "the peer is not among " + strings.Join(tried, ", nor ")
}

func (q *question) matchesPort(r *rule.Rule) (bool, string) {
	if r.Ports == nil {
		return true, "the rule is for every protocol and port"
	}
	var list []string
	for i := range r.Ports {
		if q.lane != laneOther && r.Ports[i].Matches(q.proto, q.port, q.ports) {
			return true, fmt.Sprintf("port %d is in %s", q.port, q.portText(&r.Ports[i]))
		}
		list = append(list, q.portText(&r.Ports[i]))
	}
	if q.lane == laneOther {
		return false, "the rule has ports and the packet has none that are known"
	}
	return false, fmt.Sprintf("port %d/%s is not in %s", q.port, rule.ProtoName(q.proto), strings.Join(list, ", "))
}

// portText is a rule's port, a name with what it stands for at the destination.
func (q *question) portText(p *rule.Port) string {
	if p.Name == "" {
		return p.String()
	}
	var numbers []string
	if q.ports != nil {
		for _, n := range q.ports.List {
			if n.Name == p.Name && (p.Proto == 0 || p.Proto == n.Proto) {
				numbers = append(numbers, strconv.Itoa(int(n.Port)))
			}
		}
	}
	if numbers == nil {
		return p.String() + " (the destination has none of that name)"
	}
	return p.String() + " (" + strings.Join(numbers, ", ") + ")"
}
