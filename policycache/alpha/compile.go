package alpha

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Ref gives the name under which the policy is known to the engine.
func Ref(namespace, name string) rule.Ref {
	return rule.Ref{Dialect: rule.AlphaNetworkPolicy, Namespace: namespace, Name: name}
}

// NewSet makes the set that joins policies of this dialect with the namespaces' annotation.
func NewSet() *isolation.Set {
	return isolation.NewSet(isolation.Config{
		Dialect:    rule.AlphaNetworkPolicy,
		Annotation: cluster.AnnotationIsolation,
		Read:       Read,
	})
}

// Read tells whether a namespace is isolated. The announcement knows "on" and "off", one early implementation read
// "yes" and "no", and no annotation means no isolation. Any other value is reported and isolates: whoever set the
// annotation cared for isolation.
func Read(ns *cluster.Namespace) isolation.State {
	switch ns.Isolation {
	case "on", "yes":
		return isolation.State{Isolated: true}
	case "", "off", "no":
		return isolation.State{}
	}
	return isolation.State{
		Isolated: true,
		Problem:  fmt.Sprintf("%q is none of on, off, yes and no; the namespace is isolated", ns.Isolation),
	}
}

// Compile never fails: what cannot be understood is in the result's Problems. The result shares no memory with np.
func Compile(np *NetworkPolicy) *isolation.Policy {
	c := compiler{namespace: np.Namespace, problems: slices.Clone(np.Spec.Problems)}
	p := &rule.Policy{
		Ref:     Ref(np.Namespace, np.Name),
		Tier:    rule.Namespaced,
		Subject: rule.Subject{Namespace: np.Namespace},
		Ingress: &rule.Direction{},
	}
	pods, err := rule.MatchLabels(np.Spec.PodSelector)
	p.Subject.Pods = pods
	if err != nil {
		c.problem("spec.podSelector", "%v; the policy allows nothing", err)
	} else {
		for i := range np.Spec.AllowIncoming {
			r := c.rule(fmt.Sprintf("spec.allowIncoming[%d]", i), &np.Spec.AllowIncoming[i])
			p.Ingress.Rules = append(p.Ingress.Rules, r)
		}
	}
	p.Problems = c.problems
	p.SetObject(np)
	return &isolation.Policy{Rule: p}
}

// compiler gathers the problems of one policy.
type compiler struct {
	namespace string
	problems  []rule.Problem
}

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, rule.Problem{Field: field, Text: fmt.Sprintf(format, args...)})
}

func (c *compiler) rule(field string, r *Rule) rule.Rule {
	out := rule.Rule{Action: rule.Accept}
	if len(r.From) > 0 {
		out.Peers = []rule.Peer{}
	}
	for i := range r.From {
		p, err := c.peer(&r.From[i])
		if err != nil {
			c.problem(fmt.Sprintf("%s.from[%d]", field, i), "%v; the entry allows nothing", err)
			continue
		}
		out.Peers = append(out.Peers, p)
	}
	if len(r.ToPorts) > 0 {
		out.Ports = []rule.Port{}
	}
	for i := range r.ToPorts {
		p, below, err := compilePort(&r.ToPorts[i])
		if err != nil {
			c.problem(fmt.Sprintf("%s.toPorts[%d]%s", field, i, below), "%v; the entry allows nothing", err)
			continue
		}
		out.Ports = append(out.Ports, p)
	}
	return out
}

func (c *compiler) peer(p *Peer) (rule.Peer, error) {
	switch {
	case (p.Pods == nil) == (p.Namespaces == nil):
		return rule.Peer{}, errors.New("exactly one of pods and namespaces must be set")
	case p.Pods != nil:
		sel, err := rule.MatchLabels(p.Pods)
		return rule.Peer{Kind: rule.Pods, Namespace: c.namespace, Labels: sel}, err
	}
	sel, err := rule.MatchLabels(p.Namespaces)
	return rule.Peer{Kind: rule.Pods, Namespaces: &sel}, err
}

// compilePort gives the port, or what is wrong and the path to it within the entry.
func compilePort(p *Port) (port rule.Port, field string, err error) {
	switch strings.ToUpper(p.Protocol) {
	case "", "TCP":
		port = rule.AllPorts(packet.ProtoTCP)
	case "UDP":
		port = rule.AllPorts(packet.ProtoUDP)
	case "SCTP":
		port = rule.AllPorts(packet.ProtoSCTP)
	default:
		return port, ".protocol", fmt.Errorf("unknown protocol %q", p.Protocol)
	}
	switch {
	case p.Port == nil:
		return port, "", nil
	case p.Port.Type == intstr.String:
		if msgs := validation.IsValidPortName(p.Port.StrVal); len(msgs) > 0 {
			return port, ".port", fmt.Errorf("%q is not the name of a port: %s", p.Port.StrVal, msgs[0])
		}
		return rule.Port{Proto: port.Proto, Name: p.Port.StrVal}, "", nil
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		return port, ".port", fmt.Errorf("%d is not a port number", p.Port.IntVal)
	}
	port.First, port.Last = uint16(p.Port.IntVal), uint16(p.Port.IntVal)
	return port, "", nil
}
