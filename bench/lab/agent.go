package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
)

// Agent is the agent of the node, nil if it has none.
func (l *Lab) Agent(name string) *agents.Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.nodes[name]; n != nil {
		return n.agent
	}
	return nil
}

// Agents are the agents of all nodes, by the names of the nodes.
func (l *Lab) Agents() []*agents.Agent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*agents.Agent
	for _, name := range slices.Sorted(maps.Keys(l.nodes)) {
		if a := l.nodes[name].agent; a != nil {
			found = append(found, a)
		}
	}
	return found
}

// Kill ends the node's agent with SIGKILL.
func (l *Lab) Kill(name string) error {
	return l.onAgent(name, func(a *agents.Agent) error {
		a.Kill()
		return nil
	})
}

// Stop ends the node's agent with SIGTERM and returns how it ended.
func (l *Lab) Stop(ctx context.Context, name string) error {
	return l.onAgent(name, func(a *agents.Agent) error { return a.Stop(ctx) })
}

// Start starts the node's agent again and waits until it is ready.
func (l *Lab) Start(ctx context.Context, name string) error {
	return l.onAgent(name, func(a *agents.Agent) error {
		if err := a.Start(); err != nil {
			return err
		}
		return a.WaitReady(ctx)
	})
}

func (l *Lab) onAgent(name string, f func(*agents.Agent) error) error {
	a := l.Agent(name)
	if a == nil {
		return fmt.Errorf("node %q has no agent", name)
	}
	return f(a)
}

// WaitReady waits until every agent that runs enforces.
func (l *Lab) WaitReady(ctx context.Context) error {
	return l.eachRunning(ctx, func(ctx context.Context, a *agents.Agent) error { return a.WaitReady(ctx) })
}

// WaitApplied waits until every agent that runs has the content of the directory in force, as it is now.
func (l *Lab) WaitApplied(ctx context.Context) error {
	digest, err := manifests.Digest(l.Dir())
	if err != nil {
		return err
	}
	return l.eachRunning(ctx, func(ctx context.Context, a *agents.Agent) error { return a.WaitApplied(ctx, digest) })
}

func (l *Lab) eachRunning(ctx context.Context, f func(context.Context, *agents.Agent) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range l.Agents() {
		if a.Running() {
			g.Go(func() error { return f(ctx, a) })
		}
	}
	return g.Wait()
}

// Metrics are those of all agents that run, added up.
func (l *Lab) Metrics(ctx context.Context) (agents.Metrics, error) {
	sum := agents.Metrics{}
	for _, a := range l.Agents() {
		if !a.Running() {
			continue
		}
		m, err := a.Metrics(ctx)
		if err != nil {
			return nil, err
		}
		sum = sum.Plus(m)
	}
	return sum, nil
}

// Denied are the denied-flow records of all agents, by node and then oldest first.
func (l *Lab) Denied() []agents.Record {
	var all []agents.Record
	for _, a := range l.Agents() {
		all = append(all, a.Output().Records()...)
	}
	return all
}
