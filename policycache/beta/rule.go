package beta

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// compiler gathers the problems of one policy.
type compiler struct {
	namespace string
	problems  []rule.Problem
}

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, rule.Problem{Field: field, Text: fmt.Sprintf(format, args...)})
}

// rule compiles one rule. An absent list is no restriction; in a list that is present, an entry that cannot be
// understood allows nothing, and one without entries matches nothing.
func (c *compiler) rule(field string, r *extensionsv1beta1.NetworkPolicyIngressRule) rule.Rule {
	out := rule.Rule{Action: rule.Accept}
	if r.From != nil {
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
	if r.Ports != nil {
		out.Ports = []rule.Port{}
	}
	for i := range r.Ports {
		p, below, err := port(&r.Ports[i])
		if err != nil {
			c.problem(fmt.Sprintf("%s.ports[%d]%s", field, i, below), "%v; the entry allows nothing", err)
			continue
		}
		out.Ports = append(out.Ports, p)
	}
	return out
}

func (c *compiler) peer(p *extensionsv1beta1.NetworkPolicyPeer) (rule.Peer, error) {
	switch {
	case p.PodSelector != nil:
		sel, err := rule.NewSelector(p.PodSelector)
		return rule.Peer{Kind: rule.Pods, Namespace: c.namespace, Labels: sel}, err
	case p.NamespaceSelector != nil:
		sel, err := rule.NewSelector(p.NamespaceSelector)
		return rule.Peer{Kind: rule.Pods, Namespaces: &sel}, err
	}
	return rule.Peer{}, errors.New("podSelector or namespaceSelector must be set")
}

// port gives the port, or what is wrong and the path to it within the entry. Protocols may be in lower case, because
// the documentation of the time wrote them so.
func port(p *extensionsv1beta1.NetworkPolicyPort) (out rule.Port, field string, err error) {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil {
		protocol = corev1.Protocol(strings.ToUpper(string(*p.Protocol)))
	}
	switch protocol {
	case corev1.ProtocolTCP:
		out = rule.AllPorts(packet.ProtoTCP)
	case corev1.ProtocolUDP:
		out = rule.AllPorts(packet.ProtoUDP)
	case corev1.ProtocolSCTP:
		out = rule.AllPorts(packet.ProtoSCTP)
	default:
		return out, ".protocol", fmt.Errorf("unknown protocol %q", *p.Protocol)
	}
	switch {
	case p.Port == nil:
		return out, "", nil
	case p.Port.Type == intstr.String:
		if msgs := validation.IsValidPortName(p.Port.StrVal); len(msgs) > 0 {
			return out, ".port", fmt.Errorf("%q is not the name of a port: %s", p.Port.StrVal, msgs[0])
		}
		return rule.Port{Proto: out.Proto, Name: p.Port.StrVal}, "", nil
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		return out, ".port", fmt.Errorf("%d is not a port number", p.Port.IntVal)
	}
	out.First, out.Last = uint16(p.Port.IntVal), uint16(p.Port.IntVal)
	return out, "", nil
}
