package oracle_test

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/internal/oracle"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

// system is the compiled path as the agent puts it together.
type system struct {
	node      string
	index     *endpoint.Index
	model     *engine.Model
	snapshot  *engine.Snapshot
	evaluator *engine.Evaluator
}

func newSystem(node string) *system {
	return &system{
		node: node, index: endpoint.NewIndex(), model: engine.NewModel(engine.Config{Node: node}),
		// Far too few pairs, so that they are thrown away and made again all the time.
		evaluator: engine.NewEvaluator(16),
	}
}

// build makes a system of a whole cluster.
func build(c *oracle.Cluster, node string) *system {
	s := newSystem(node)
	for _, p := range c.Pods {
		s.index.SetPod(cluster.NewPod(p))
	}
	for _, n := range c.Nodes {
		s.index.SetNode(cluster.NewNode(n))
	}
	for _, ns := range c.Namespaces {
		s.index.SetNamespace(cluster.NewNamespace(ns))
	}
	for _, np := range c.Policies {
		s.model.SetPolicy(netpol.Compile(np))
	}
	s.commit()
	return s
}

func (s *system) commit() *engine.Delta {
	s.model.ApplyEndpoints(s.index.Flush())
	var local []netip.Prefix
	if n, ok := s.index.Node(s.node); ok {
		local = n.PodCIDRs
	}
	s.model.SetPodCIDRs(s.index.PodCIDRs(), local)
	snapshot, delta := s.model.Commit()
	s.snapshot = snapshot
	return delta
}

var (
	protocols = map[corev1.Protocol]uint8{
		corev1.ProtocolTCP: packet.ProtoTCP, corev1.ProtocolUDP: packet.ProtoUDP, corev1.ProtocolSCTP: packet.ProtoSCTP,
		"ICMP": packet.ProtoICMP,
	}
	hooks = map[oracle.Hook]engine.Hook{"forward": engine.Forward, "input": engine.Input, "output": engine.Output}
)

func flowOf(p oracle.Probe) packet.Flow {
	f := packet.Flow{
		Src: p.Src, Dst: p.Dst, SrcPort: uint16(p.SrcPort), DstPort: uint16(p.DstPort),
		Proto: protocols[p.Protocol], Form: packet.Complete,
	}
	if f.Proto == packet.ProtoTCP {
		f.TCPFlags = packet.FlagSYN
	}
	if p.MidStream {
		f.TCPFlags = packet.FlagACK
	}
	if p.Fragment {
		f.Form, f.TCPFlags = packet.Fragment, 0
	}
	return f
}

func (s *system) judge(p oracle.Probe) engine.Verdict {
	f := flowOf(p)
	return s.evaluator.Judge(s.snapshot, &f, hooks[p.Hook], true)
}

func (s *system) explain(p oracle.Probe) engine.Explanation {
	f := flowOf(p)
	return engine.Explain(s.snapshot, &f, hooks[p.Hook], true)
}
