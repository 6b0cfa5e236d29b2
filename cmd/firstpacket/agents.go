package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/proxy/fleet"
)

// agentsFlags say which agents are asked: those at addresses, or those of a cluster through its API server.
type agentsFlags struct {
	clusterflags.Connection
	addresses []string
	nodes     []string
	namespace string
	via       choice
}

// add adds the flags to a command; the connection's are added apart, since other flags may have them already.
func (f *agentsFlags) add(cmd *cobra.Command) {
	f.via = choice{value: string(fleet.PortForward), allowed: []string{string(fleet.PortForward), string(fleet.Proxy)}}
	fs := cmd.Flags()
	fs.StringArrayVar(&f.addresses, "agent", nil,
		"ask the agent at this address, one of its --http-address: host:port or unix:PATH; repeatable")
	fs.StringArrayVar(&f.nodes, "node", nil,
		"ask the agent of this node, through the API server; repeatable (default: all)")
	fs.StringVar(&f.namespace, "agents-namespace", fleet.DefaultNamespace, "namespace of the agents' pods")
	fs.Var(&f.via, "via", "way through the API server: port-forward as kubectl's, or its proxy to the nodes' addresses")
	complete(cmd, "via", f.via.allowed...)
	cmd.MarkFlagsMutuallyExclusive("agent", "node")
	cmd.MarkFlagsMutuallyExclusive("agent", "kubeconfig")
	cmd.MarkFlagsMutuallyExclusive("agent", "context")
}

// cluster tells whether a flag asks for the agents of a cluster.
func (f *agentsFlags) cluster() bool { return f.Given() || len(f.nodes) > 0 }

// find lists the agents. They are to be closed.
func (f *agentsFlags) find(ctx context.Context) ([]*fleet.Agent, error) {
	if len(f.addresses) > 0 {
		agents := make([]*fleet.Agent, len(f.addresses))
		for i, address := range f.addresses {
			agents[i] = fleet.At(address)
		}
		return agents, nil
	}
	c, err := f.through()
	if err != nil {
		return nil, err
	}
	return f.among(ctx, c, f.nodes)
}

// through is the way to the agents of a cluster.
func (f *agentsFlags) through() (*fleet.Cluster, error) {
	config, _, err := f.Config()
	if err != nil {
		return nil, fmt.Errorf("%w; give --kubeconfig, or --agent to ask an agent at its address", err)
	}
	config.UserAgent = userAgent()
	return &fleet.Cluster{Config: config, Namespace: f.namespace, Via: fleet.Via(f.via.value)}, nil
}

// among finds the agents of these nodes; of all, if none are given.
func (f *agentsFlags) among(ctx context.Context, c *fleet.Cluster, nodes []string) ([]*fleet.Agent, error) {
	agents, err := c.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w; --agents-namespace says where they are", err)
	}
	if len(nodes) == 0 {
		return agents, nil
	}
	var known []string
	chosen := slices.DeleteFunc(agents, func(a *fleet.Agent) bool {
		known = append(known, a.Name)
		if slices.Contains(nodes, a.Name) {
			return false
		}
		a.Close()
		return true
	})
	for _, node := range nodes {
		if !slices.Contains(known, node) {
			closeAgents(chosen)
			return nil, fmt.Errorf("no agent runs on node %s; there are %s", node, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// nodeOf is the node that runs a pod, which is namespace/name.
func nodeOf(ctx context.Context, c *fleet.Cluster, pod string) (string, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", errUsage{fmt.Errorf("pod %q: write namespace/name", pod)}
	}
	return c.NodeOf(ctx, namespace, name)
}

func closeAgents(agents []*fleet.Agent) {
	for _, a := range agents {
		a.Close()
	}
}
