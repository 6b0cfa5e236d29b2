package engine

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// world is a model under test, with its endpoints named in few words.
type world struct {
	testing.TB
	*Model
	snap  *Snapshot
	delta *Delta
	ev    *Evaluator
}

func newWorld(tb testing.TB, node string) *world {
	w := &world{TB: tb, Model: NewModel(Config{Node: node}), ev: NewEvaluator(1 << 12)}
	w.commit()
	return w
}

func (w *world) commit() *Delta {
	w.snap, w.delta = w.Commit()
	return w.delta
}

func labels(pairs ...string) label.Set {
	var s label.Set
	for i := 0; i < len(pairs); i += 2 {
		s = s.With(pairs[i], pairs[i+1])
	}
	return s
}

func podEndpoint(
	node, namespace, name string, set label.Set, ports *endpoint.Ports, addrs ...string,
) *endpoint.Endpoint {
	ep := &endpoint.Endpoint{
		Identity: identity.Intern(identity.Identity{
			Kind: identity.Pod, Namespace: namespace, Labels: set,
			NamespaceLabels: labels("kubernetes.io/metadata.name", namespace),
		}),
		Kind: identity.Pod, Namespace: namespace, Name: name, Node: node, Ports: ports,
	}
	for _, a := range addrs {
		ep.Addrs = append(ep.Addrs, netip.MustParseAddr(a))
	}
	return ep
}

func nodeEndpoint(name string, set label.Set, addrs ...string) *endpoint.Endpoint {
	ep := &endpoint.Endpoint{
		Identity: identity.Intern(identity.Identity{Kind: identity.Node, Labels: set}),
		Kind:     identity.Node, Name: name, Node: name,
	}
	for _, a := range addrs {
		ep.Addrs = append(ep.Addrs, netip.MustParseAddr(a))
	}
	return ep
}

func (w *world) add(eps ...*endpoint.Endpoint) {
	for _, ep := range eps {
		for _, a := range ep.Addrs {
			w.ApplyEndpoints([]endpoint.Change{{Addr: a, New: ep}})
		}
	}
}

func (w *world) drop(ep *endpoint.Endpoint) {
	for _, a := range ep.Addrs {
		w.ApplyEndpoints([]endpoint.Change{{Addr: a, Old: ep}})
	}
}

func selector(tb testing.TB, pairs ...string) rule.Selector {
	tb.Helper()
	s, err := rule.MatchLabels(labels(pairs...).Map())
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// netpol is a policy of the NetworkPolicy tier for all pods of a namespace with these labels.
func (w *world) netpol(namespace, name string, ingress, egress *rule.Direction, pairs ...string) *rule.Policy {
	return &rule.Policy{
		Ref:  rule.Ref{Dialect: rule.NetworkPolicy, Namespace: namespace, Name: name},
		Tier: rule.Namespaced, Ingress: ingress, Egress: egress,
		Subject: rule.Subject{Namespace: namespace, Pods: selector(w, pairs...)},
	}
}

// wide is a policy of another tier for all pods of the cluster.
func wide(tier rule.Tier, priority int32, name string, ingress, egress *rule.Direction) *rule.Policy {
	return &rule.Policy{
		Ref:  rule.Ref{Dialect: rule.ClusterNetworkPolicy, Name: name},
		Tier: tier, Priority: priority, Ingress: ingress, Egress: egress,
		Subject: rule.Subject{Namespaces: &rule.Selector{}},
	}
}

func rules(list ...rule.Rule) *rule.Direction { return &rule.Direction{Rules: list} }

func tcpPorts(first, last uint16) []rule.Port {
	return []rule.Port{{Proto: packet.ProtoTCP, First: first, Last: last}}
}

func block(cidr string, except ...string) []rule.Peer {
	b := &rule.Block{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return []rule.Peer{{Kind: rule.Addresses, Block: b}}
}

func podsOf(namespace string, pods rule.Selector) []rule.Peer {
	return []rule.Peer{{Kind: rule.Pods, Namespace: namespace, Labels: pods}}
}

func flow(src, dst string, proto uint8, srcPort, dstPort uint16) packet.Flow {
	f := packet.Flow{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Proto: proto, SrcPort: srcPort, DstPort: dstPort,
		Form: packet.Complete,
	}
	if proto == packet.ProtoTCP {
		f.TCPFlags = packet.FlagSYN
	}
	return f
}

func syn(src, dst string, port uint16) packet.Flow {
	return flow(src, dst, packet.ProtoTCP, 40000, port)
}

func (w *world) judge(f packet.Flow, hook Hook, held bool) Verdict {
	return w.ev.Judge(w.snap, &f, hook, held)
}

// big makes a cluster of the given size: pods in namespaces of 100, on nodes of 100, and each namespace's share of the
// policies. The pods of node n0 are the subjects. Two of its pods, in namespace ns0 and isolated in both directions,
// are the ones to measure with.
func big(tb testing.TB, policies, pods int) (w *world, src, dst netip.Addr) {
	w = newWorld(tb, "n0")
	ports := cluster.InternPorts([]cluster.NamedPort{{Name: "http", Proto: packet.ProtoTCP, Port: 80}})
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	changes := make([]endpoint.Change, pods)
	for i := range pods {
		ns := fmt.Sprint("ns", i/100)
		ep := podEndpoint(fmt.Sprint("n", i/100), ns, fmt.Sprint("pod", i), labels("app", fmt.Sprint("app", i%10)), ports)
		ep.Addrs = []netip.Addr{addr(i + 1)}
		changes[i] = endpoint.Change{Addr: ep.Addrs[0], New: ep}
	}
	w.ApplyEndpoints(changes)
	namespaces := max(pods/100, 1)
	for i := range policies {
		ns := fmt.Sprint("ns", i%namespaces)
		p := w.netpol(ns, fmt.Sprint("np", i),
			rules(rule.Rule{
				Peers: append(podsOf(ns, selector(tb, "app", "app0")), block("192.168.0.0/16", "192.168.1.0/24")...),
				Ports: []rule.Port{
					{Proto: packet.ProtoTCP, First: uint16(1000 + i%50000), Last: uint16(1000 + i%50000)},
					{Proto: packet.ProtoTCP, Name: "http"},
				},
			}),
			rules(rule.Rule{Peers: podsOf(ns, selector(tb, "app", "app1"))}))
		if i > 0 {
			p.Subject.Pods = selector(tb, "app", fmt.Sprint("app", i/namespaces%10))
		}
		w.SetPolicy(p)
	}
	w.commit()
	return w, addr(1), addr(2)
}
