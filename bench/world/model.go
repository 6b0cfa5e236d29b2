package world

import (
	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

// Model builds the engine's model of the stage's node, by the code that the agent uses.
func (w World) Model() *engine.Model {
	index := endpoint.NewIndex()
	for o := range w.Namespaces {
		index.SetNamespace(cluster.NewNamespace(o))
	}
	for o := range w.Nodes {
		index.SetNode(cluster.NewNode(o))
	}
	for o := range w.EachPod {
		index.SetPod(cluster.NewPod(o))
	}
	m := engine.NewModel(engine.Config{Node: Node})
	m.ApplyEndpoints(index.Flush())
	if n, ok := index.Node(Node); ok {
		m.SetPodCIDRs(index.PodCIDRs(), n.PodCIDRs)
	}
	for o := range w.EachPolicy {
		m.SetPolicy(netpol.Compile(o))
	}
	return m
}
