// Package tiered compiles the policies of the Admin and Baseline tiers, in the terms that all their dialects share
// (sigs.k8s.io/network-policy-api: ClusterNetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy).
//
// What cannot be understood fails closed, which means different things for different parts:
//
//   - A peer: as the API asks, an accepting rule matches nothing and a denying or passing rule denies all.
//   - A protocol or port: an accepting rule matches nothing; a denying or passing rule denies its peers at every port.
//   - The action: what the rule matches is denied.
//   - The subject, tier or priority: the policy is about all pods that it may have meant, and stands before all others
//     that it may have stood before. Its accepting rules match nothing, its passing rules deny what they match.
package tiered

import (
	"errors"
	"fmt"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// First is the priority of policies whose place is unknown: before every priority that the API admits.
const First int32 = -1

// Policy is a policy object in common terms.
type Policy struct {
	Ref      rule.Ref
	Tier     rule.Tier
	Priority int32
	Subject  Subject
	// Ingress and Egress leave the direction alone where they are empty.
	Ingress, Egress []Rule
	// Problems were found by the dialect. With Closed set they concern the policy as a whole.
	Problems []rule.Problem
	Closed   bool
}

// Subject selects pods; exactly one of the fields is to be set.
type Subject struct {
	Namespaces *metav1.LabelSelector
	Pods       *Pods
}

// Pods selects pods by namespace and by pod labels.
type Pods struct{ Namespaces, Pods metav1.LabelSelector }

// Rule is one rule of a direction.
type Rule struct {
	Name string
	// Action is nil where the object's action is unknown; Written is that of the object.
	Action  *rule.Action
	Written string
	// PeersField and PortsField are the names of the lists in the object.
	PeersField, PortsField string
	Peers                  []Peer
	// Ports is nil where the rule does not ask for ports.
	Ports []Port
}

// Peer is one entry of a rule's peers; exactly one of the fields is to be set.
type Peer struct {
	Namespaces *metav1.LabelSelector
	Pods       *Pods
	Nodes      *metav1.LabelSelector
	Networks   []string
	Domains    []string
}

// Port is one entry of a rule's ports, as the dialect understood it.
type Port struct {
	Port rule.Port
	// Err says why it could not; Field is the path to the culprit within the entry.
	Err   error
	Field string
}

// Compile never fails: what cannot be understood is in the result's Problems.
func Compile(p *Policy) *rule.Policy {
	c := compiler{problems: p.Problems}
	out := &rule.Policy{Ref: p.Ref, Tier: p.Tier, Priority: p.Priority}
	subject, ok := c.subject(&p.Subject)
	out.Subject = subject
	closed := p.Closed || !ok
	out.Ingress = c.direction("spec.ingress", p.Ingress, closed)
	out.Egress = c.direction("spec.egress", p.Egress, closed)
	out.Problems = c.problems
	return out
}

type compiler struct{ problems []rule.Problem }

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, rule.Problem{Field: field, Text: fmt.Sprintf(format, args...)})
}

var (
	errOne   = errors.New("exactly one field must be set")
	errPeers = errors.New("a rule needs at least one peer")
	errNamed = errors.New("networks, nodes and domainNames have no named ports")
)

// consequence closes the messages about the object as a whole.
const consequence = "the policy accepts nothing, and denies what it would have passed"

func (c *compiler) subject(s *Subject) (subject rule.Subject, ok bool) {
	var everything rule.Selector
	subject.Namespaces = &everything
	switch {
	case (s.Namespaces == nil) == (s.Pods == nil):
		c.problem("spec.subject", "%v; the policy is about all pods: %s", errOne, consequence)
		return subject, false
	case s.Namespaces != nil:
		sel, err := rule.NewSelector(s.Namespaces)
		subject.Namespaces = &sel
		return subject, c.selector("spec.subject.namespaces", err)
	}
	namespaces, err := rule.NewSelector(&s.Pods.Namespaces)
	subject.Namespaces = &namespaces
	ok = c.selector("spec.subject.pods.namespaceSelector", err)
	subject.Pods, err = rule.NewSelector(&s.Pods.Pods)
	return subject, c.selector("spec.subject.pods.podSelector", err) && ok
}

func (c *compiler) selector(field string, err error) bool {
	if err != nil {
		c.problem(field, "%v; the policy is about the pods that match the rest of it: %s", err, consequence)
	}
	return err == nil
}

func (c *compiler) direction(field string, rules []Rule, closed bool) *rule.Direction {
	if len(rules) == 0 {
		return nil
	}
	d := &rule.Direction{Rules: make([]rule.Rule, len(rules))}
	for i := range rules {
		d.Rules[i] = c.rule(fmt.Sprintf("%s[%d]", field, i), &rules[i], closed)
	}
	return d
}

// nothing is a rule that keeps its place in the list and matches no packet.
func nothing(name string) rule.Rule {
	return rule.Rule{Name: name, Action: rule.Accept, Peers: []rule.Peer{}, Ports: []rule.Port{}}
}

func (c *compiler) rule(field string, r *Rule, closed bool) rule.Rule {
	action := rule.Deny
	if r.Action != nil {
		action = *r.Action
	} else {
		c.problem(field+".action", "unknown action %q; the rule denies what it matches", r.Written)
	}
	accept := action == rule.Accept
	peers, peersOK := c.peers(field, r, action)
	ports, portsOK := c.ports(field, r, accept)
	if accept && (closed || !peersOK || !portsOK) {
		return nothing(r.Name)
	}
	if closed || !peersOK || !portsOK {
		action = rule.Deny
	}
	if !peersOK {
		peers, ports = nil, nil
	}
	if !portsOK {
		ports = nil
	}
	return rule.Rule{Name: r.Name, Action: action, Peers: peers, Ports: ports}
}

func (c *compiler) peers(field string, r *Rule, action rule.Action) (peers []rule.Peer, ok bool) {
	then := "the rule denies all"
	if action == rule.Accept {
		then = "the rule matches nothing"
	}
	field += "." + r.PeersField
	if len(r.Peers) == 0 {
		c.problem(field, "%v; %s", errPeers, then)
		return nil, false
	}
	ok = true
	peers = []rule.Peer{}
	for i := range r.Peers {
		at := fmt.Sprintf("%s[%d]", field, i)
		more, below, err := compilePeer(&r.Peers[i], action == rule.Accept)
		if err != nil {
			c.problem(at+below, "%v; %s", err, then)
			ok = false
		}
		peers = append(peers, more...)
	}
	return peers, ok
}

// compilePeer gives the peers that one entry stands for. field is the path within the entry to what is wrong.
func compilePeer(p *Peer, accept bool) (peers []rule.Peer, field string, err error) {
	set := 0
	for _, has := range [...]bool{
		p.Namespaces != nil, p.Pods != nil, p.Nodes != nil, len(p.Networks) > 0, len(p.Domains) > 0,
	} {
		if has {
			set++
		}
	}
	switch {
	case set != 1:
		return nil, "", errOne
	case p.Namespaces != nil:
		sel, err := rule.NewSelector(p.Namespaces)
		return []rule.Peer{{Kind: rule.Pods, Namespaces: &sel}}, ".namespaces", err
	case p.Pods != nil:
		namespaces, err := rule.NewSelector(&p.Pods.Namespaces)
		if err != nil {
			return nil, ".pods.namespaceSelector", err
		}
		pods, err := rule.NewSelector(&p.Pods.Pods)
		return []rule.Peer{{Kind: rule.Pods, Namespaces: &namespaces, Labels: pods}}, ".pods.podSelector", err
	case p.Nodes != nil:
		sel, err := rule.NewSelector(p.Nodes)
		return []rule.Peer{{Kind: rule.Nodes, Labels: sel}}, ".nodes", err
	case len(p.Networks) > 0:
		return networks(p.Networks)
	}
	return domains(p.Domains, accept)
}

func networks(cidrs []string) (peers []rule.Peer, field string, err error) {
	for i, s := range cidrs {
		prefix, err := parseCIDR(s)
		if err != nil {
			return nil, fmt.Sprintf(".networks[%d]", i), err
		}
		peers = append(peers, rule.Peer{Kind: rule.Addresses, Block: &rule.Block{CIDR: prefix}})
	}
	return peers, "", nil
}

// parseCIDR takes what the isCIDR function of the API server's validation does: no IPv4-mapped IPv6, no zone, no
// leading zeros; bits beyond the prefix length may be set and have no meaning.
func parseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range", s)
	}
	return p.Masked(), nil
}

var errDomains = errors.New("domainNames is only supported in egress rules that accept")

func domains(names []string, accept bool) (peers []rule.Peer, field string, err error) {
	if !accept {
		return nil, ".domainNames", errDomains
	}
	for _, n := range names {
		p, err := domain.Parse(n)
		if err != nil {
			return nil, ".domainNames", err
		}
		peers = append(peers, rule.Peer{Kind: rule.Names, Name: p})
	}
	return peers, "", nil
}

func (c *compiler) ports(field string, r *Rule, accept bool) (ports []rule.Port, ok bool) {
	if r.Ports == nil {
		return nil, true
	}
	then := "the rule denies its peers at every port"
	if accept {
		then = "the rule matches nothing"
	}
	field += "." + r.PortsField
	if len(r.Ports) == 0 {
		c.problem(field, "the list must not be empty; %s", then)
		return nil, false
	}
	ok = true
	for i := range r.Ports {
		p := &r.Ports[i]
		err := p.Err
		if err == nil && p.Port.Name != "" && r.unnamed() {
			err = errNamed
		}
		if err != nil {
			c.problem(fmt.Sprintf("%s[%d]%s", field, i, p.Field), "%v; %s", err, then)
			ok = false
			continue
		}
		ports = append(ports, p.Port)
	}
	return ports, ok
}

// unnamed tells whether the rule has peers that named ports do not exist for.
func (r *Rule) unnamed() bool {
	for i := range r.Peers {
		if p := &r.Peers[i]; p.Nodes != nil || len(p.Networks) > 0 || len(p.Domains) > 0 {
			return true
		}
	}
	return false
}
