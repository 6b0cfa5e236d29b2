// Package explain answers "is this allowed, and why?" for two parties and a port, in words and as data. It asks the
// engine that enforces; nothing here judges.
package explain

import (
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// Question names two parties and a port, as people write them.
type Question struct {
	// From and To are namespace/pod, node/name, an address, or a pod's name alone in Namespace. To may also be
	// svc/name or svc/namespace/name: the pods behind the service are asked about then.
	From, To string
	// Namespace is that of names without one; "default" if empty.
	Namespace string
	// Port is 80/TCP, 80 (TCP), the name of a port of the destination, or ICMP.
	Port string
}

// Cluster is what questions are asked about.
type Cluster struct {
	Snapshot *engine.Snapshot
	// Services are those that To may name.
	Services []*corev1.Service
	// NoServices says why there are none to ask, where that is so.
	NoServices error
}

// Answer is the reasoning about every flow that a question means: one for each address family that both parties have,
// and for each pod behind a service.
type Answer struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port string `json:"port"`
	// Verdict is allow if every flow is allowed, else deny.
	Verdict engine.Action `json:"verdict"`
	// Flows has at least one entry.
	Flows []engine.Explanation `json:"flows"`
}

var (
	// ErrQuestion is wrapped by errors about how the question is written.
	ErrQuestion = errors.New("cannot read the question")
	// ErrNotFound is wrapped by errors about names that the cluster does not have.
	ErrNotFound = errors.New("not found")
	// ErrNoFlow is returned for parties between which no packet can go.
	ErrNoFlow = errors.New("the two have no address family in common, so no packet can go between them")
)

// ephemeral is the source port that flows are given. No rule looks at it.
const ephemeral = 49152

// Ask answers a question. It takes time in proportion to the endpoints of the cluster.
func Ask(c Cluster, q Question) (Answer, error) {
	port, err := parsePort(q.Port)
	if err != nil {
		return Answer{}, err
	}
	from, err := c.party(q.From, q.Namespace)
	if err != nil {
		return Answer{}, err
	}
	if len(from) == 1 && from[0].service {
		return Answer{}, fmt.Errorf("%w: %s opens no connections; give the pod that does", ErrQuestion, q.From)
	}
	to, err := c.destinations(q.To, q.Namespace, port)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{From: q.From, To: q.To, Port: q.Port, Verdict: engine.Allow}
	for _, dst := range to {
		for _, src := range from {
			for _, f := range flows(src, dst) {
				x := engine.Explain(c.Snapshot, &f, hookOf(src.ep, dst.ep), true)
				if x.Action != engine.Allow {
					a.Verdict = engine.Deny
				}
				a.Flows = append(a.Flows, x)
			}
		}
	}
	if len(a.Flows) == 0 {
		return Answer{}, ErrNoFlow
	}
	return a, nil
}

// flows are the connections that can be opened from one party to the other, one for each port and family.
func flows(src, dst party) []packet.Flow {
	var list []packet.Flow
	for _, s := range src.addrs {
		for _, d := range dst.addrs {
			if s.Is4() != d.Is4() {
				continue
			}
			for _, p := range dst.ports {
				list = append(list, p.flow(s, d))
			}
		}
	}
	return list
}

// hookOf is where the kernel sees such a packet first: what a node sends to its own pods it sends itself, and only
// there its address proves anything.
func hookOf(src, dst *endpoint.Endpoint) engine.Hook {
	if src != nil && dst != nil && isNode(src) && !isNode(dst) && src.Node == dst.Node {
		return engine.Output
	}
	return engine.Forward
}

// flow is the first packet of a connection between the addresses.
func (p port) flow(src, dst netip.Addr) packet.Flow {
	f := packet.Flow{Src: src, Dst: dst, Proto: p.proto, Form: packet.Complete}
	switch p.proto {
	case packet.ProtoICMP:
		f.ICMPType = echoRequest
		if src.Is6() {
			f.Proto, f.ICMPType = packet.ProtoICMPv6, echoRequest6
		}
	case packet.ProtoTCP:
		f.TCPFlags = packet.FlagSYN
		fallthrough
	default:
		f.SrcPort, f.DstPort = ephemeral, p.number
	}
	return f
}

// Types of messages (RFC 792, RFC 4443).
const (
	echoRequest  = 8
	echoRequest6 = 128
)
