// Package netpol compiles networking.k8s.io/v1 NetworkPolicy objects.
//
// The rules are those of the API documentation (k8s.io/api/networking/v1, types.go). What the API server would have
// refused, and only a manifest in a directory can contain, fails closed: a rule of which any part cannot be
// understood allows nothing, and a policy whose subjects cannot be told isolates at least the pods it may have meant.
package netpol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Ref gives the name under which the policy is known to the engine.
func Ref(namespace, name string) rule.Ref {
	return rule.Ref{Dialect: rule.NetworkPolicy, Namespace: namespace, Name: name}
}

// Compile never fails: what cannot be understood is in the result's Problems. The result shares no memory with np.
func Compile(np *networkingv1.NetworkPolicy) *rule.Policy {
	c := compiler{namespace: np.Namespace}
	p := &rule.Policy{
		Ref:     Ref(np.Namespace, np.Name),
		Tier:    rule.Namespaced,
		Subject: rule.Subject{Namespace: np.Namespace},
	}
	pods, err := rule.NewSelector(&np.Spec.PodSelector)
	p.Subject.Pods = pods
	ingress, egress := c.directions(&np.Spec)
	if ingress {
		p.Ingress = &rule.Direction{}
		for i := range np.Spec.Ingress {
			r := &np.Spec.Ingress[i]
			p.Ingress.Rules = append(p.Ingress.Rules, c.rule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports))
		}
	}
	if egress {
		p.Egress = &rule.Direction{}
		for i := range np.Spec.Egress {
			r := &np.Spec.Egress[i]
			p.Egress.Rules = append(p.Egress.Rules, c.rule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports))
		}
	}
	if err != nil {
		// The pods selected may be too many. They are isolated, but what was allowed to the pods that were meant
		// must not be allowed to others.
		c.problem("spec.podSelector", "%v; the pods that match the rest of it are isolated and allowed nothing", err)
		for _, d := range []*rule.Direction{p.Ingress, p.Egress} {
			if d != nil {
				d.Rules = nil
			}
		}
	}
	p.Problems = c.problems
	p.SetObject(np)
	return p
}

// compiler gathers the problems of one policy.
type compiler struct {
	namespace string
	problems  []rule.Problem
}

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, rule.Problem{Field: field, Text: fmt.Sprintf(format, args...)})
}

// directions applies the defaults of policyTypes: all policies affect ingress, those with egress rules egress too.
func (c *compiler) directions(s *networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(s.PolicyTypes) == 0 {
		return true, len(s.Egress) > 0
	}
	for i, t := range s.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			c.problem(fmt.Sprintf("spec.policyTypes[%d]", i), "unknown type %q; the policy affects both directions", t)
			return true, true
		}
	}
	return ingress, egress
}

// rule compiles one rule. A rule with a problem keeps its place in the list and matches nothing.
func (c *compiler) rule(
	field, peersField string, from []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort,
) rule.Rule {
	r := rule.Rule{Action: rule.Accept}
	ok := true
	for i := range from {
		at := fmt.Sprintf("%s.%s[%d]", field, peersField, i)
		peer, bad := c.peer(&from[i])
		if bad.err != nil {
			c.problem(at+bad.field, "%v; the rule allows nothing", bad.err)
			ok = false
			continue
		}
		r.Peers = append(r.Peers, peer)
	}
	for i := range ports {
		port, bad := c.port(&ports[i])
		if bad.err != nil {
			c.problem(fmt.Sprintf("%s.ports[%d]%s", field, i, bad.field), "%v; the rule allows nothing", bad.err)
			ok = false
			continue
		}
		r.Ports = append(r.Ports, port)
	}
	if !ok {
		r.Peers, r.Ports = []rule.Peer{}, []rule.Port{}
	}
	return r
}

// fault is an error in a part of a rule; field is relative to that part.
type fault struct {
	field string
	err   error
}

func (c *compiler) peer(p *networkingv1.NetworkPolicyPeer) (rule.Peer, fault) {
	switch {
	case p.IPBlock != nil && (p.PodSelector != nil || p.NamespaceSelector != nil):
		return rule.Peer{}, fault{".ipBlock", errors.New("ipBlock and selectors exclude each other")}
	case p.IPBlock != nil:
		block, bad := compileBlock(p.IPBlock)
		return rule.Peer{Kind: rule.Addresses, Block: block}, bad
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		return rule.Peer{}, fault{"", errors.New("a peer needs a podSelector, a namespaceSelector or an ipBlock")}
	}
	peer := rule.Peer{Kind: rule.Pods, Namespace: c.namespace}
	if p.NamespaceSelector != nil {
		sel, err := rule.NewSelector(p.NamespaceSelector)
		if err != nil {
			return rule.Peer{}, fault{".namespaceSelector", err}
		}
		peer.Namespace, peer.Namespaces = "", &sel
	}
	if p.PodSelector != nil {
		sel, err := rule.NewSelector(p.PodSelector)
		if err != nil {
			return rule.Peer{}, fault{".podSelector", err}
		}
		peer.Labels = sel
	}
	return peer, fault{}
}

func compileBlock(b *networkingv1.IPBlock) (*rule.Block, fault) {
	cidr, err := parsePrefix(b.CIDR)
	if err != nil {
		return nil, fault{".ipBlock.cidr", err}
	}
	block := &rule.Block{CIDR: cidr}
	for i, e := range b.Except {
		except, err := parsePrefix(e)
		if err == nil && (!cidr.Overlaps(except) || except.Bits() <= cidr.Bits()) {
			err = fmt.Errorf("%s is not a part of %s", e, b.CIDR)
		}
		if err != nil {
			return nil, fault{fmt.Sprintf(".ipBlock.except[%d]", i), err}
		}
		block.Except = append(block.Except, except)
	}
	slices.SortFunc(block.Except, netip.Prefix.Compare)
	block.Except = slices.Compact(block.Except)
	return block, fault{}
}

// parsePrefix reads a CIDR as the API server does for objects that have always been accepted: leading zeros are
// decimal, bits beyond the prefix length are ignored, IPv4 may be written as IPv4-mapped IPv6
// (k8s.io/apimachinery/pkg/util/validation, IsValidCIDRForLegacyField).
func parsePrefix(s string) (netip.Prefix, error) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not an address range", s)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if addr.Is4In6() && bits == 128 && ones >= 96 {
		ones -= 96
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones).Masked(), nil
}

func (c *compiler) port(p *networkingv1.NetworkPolicyPort) (rule.Port, fault) {
	port := rule.AllPorts(packet.ProtoTCP)
	if p.Protocol != nil {
		switch *p.Protocol {
		case corev1.ProtocolTCP:
		case corev1.ProtocolUDP:
			port.Proto = packet.ProtoUDP
		case corev1.ProtocolSCTP:
			port.Proto = packet.ProtoSCTP
		default:
			return port, fault{".protocol", fmt.Errorf("unknown protocol %q", *p.Protocol)}
		}
	}
	switch {
	case p.Port == nil && p.EndPort == nil:
		return port, fault{}
	case p.Port == nil:
		return port, fault{".endPort", errors.New("endPort needs a port")}
	case p.Port.Type == intstr.String && p.EndPort != nil:
		return port, fault{".endPort", errors.New("endPort needs a numeric port")}
	case p.Port.Type == intstr.String && p.Port.StrVal == "":
		return port, fault{".port", errors.New("the port's name is empty")}
	case p.Port.Type == intstr.String:
		port.Name, port.Last = p.Port.StrVal, 0
		return port, fault{}
	}
	first := p.Port.IntVal
	last := first
	if p.EndPort != nil {
		last = *p.EndPort
	}
	switch {
	case first < 1 || first > 65535:
		return port, fault{".port", fmt.Errorf("%d is not a port number", first)}
	case last > 65535:
		return port, fault{".endPort", fmt.Errorf("%d is not a port number", last)}
	case last < first:
		return port, fault{".endPort", fmt.Errorf("endPort %d is below port %d", last, first)}
	}
	port.First, port.Last = uint16(first), uint16(last)
	return port, fault{}
}
