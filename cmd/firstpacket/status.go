package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/fleet"
	"github.com/firstpacket/firstpacket/proxy/overview"
)

// statusOptions say which agents are asked.
type statusOptions struct {
	agents agentsFlags
	pod    string
	all    bool
}

func newStatus() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how an agent is, on one screen, or all agents in a table",
		Long: `Show how an agent is, on one screen: what it enforces, policies with problems, its queues, caches, sources
and last errors. It is the agent of this machine, or through the API server that of a node (--node) or of the node that
runs a pod (--pod). Several agents, or all of a cluster (--all-nodes), are a table with a line for each.

Exit status: 0 they enforce the newest state of their sources, 3 one of them does not, or does not answer while others
do, 1 none answers, 2 wrong usage.`,
		Example: `  # on its node
  firstpacket status

  # all agents of the current context's cluster
  firstpacket status --all-nodes

  # one of them, and the one that looks after a pod
  firstpacket status --node worker-7
  firstpacket status --pod shop/web-1

  # in the pod of an agent
  kubectl exec -n firstpacket ds/firstpacket -- /firstpacket status --agent unix:/run/firstpacket/agent.sock`,
		Args: noArgs,
	}
	o.agents.Connection.Add(cmd)
	o.agents.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.pod, "pod", "", "ask the agent of the node that runs this pod, as namespace/name")
	f.BoolVarP(&o.all, "all-nodes", "A", false, "ask all agents of the cluster")
	cmd.MarkFlagsMutuallyExclusive("agent", "node", "pod", "all-nodes")
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return o.run(cmd, output.value)
	}
	return cmd
}

func (o *statusOptions) run(cmd *cobra.Command, output string) error {
	stop := terminal.NewProgress(cmd.ErrOrStderr(), "asking agents").Wait()
	table, err := o.ask(cmd.Context())
	stop()
	if err != nil {
		return err
	}
	if err := table.Err(); err != nil {
		if len(o.agents.addresses) > 0 && errors.Is(err, overview.ErrNoAgent) {
			err = fmt.Errorf("%w; give the --http-address that it runs with as --agent, or ask through the API server with "+
				"--node or --all-nodes", err)
		}
		return err
	}
	out := cmd.OutOrStdout()
	style, now := terminal.Style(out), time.Now()
	one := len(table) == 1 && !o.all
	switch {
	case one && output == "json":
		err = table[0].Overview.WriteJSON(out)
	case one:
		err = table[0].Overview.WriteText(out, style, now)
	case output == "json":
		err = table.WriteJSON(out)
	default:
		err = table.WriteText(out, style, now)
	}
	if err == nil && !table.Ready() {
		return errNo
	}
	return err
}

// ask asks the agents that are meant.
func (o *statusOptions) ask(ctx context.Context) (overview.Table, error) {
	if !o.all && o.pod == "" && !o.agents.cluster() && len(o.agents.addresses) == 0 {
		o.agents.addresses = []string{agent.DefaultHTTPAddress}
	}
	agents, err := o.find(ctx)
	if err != nil {
		return nil, err
	}
	defer closeAgents(agents)
	return fleet.Overviews(ctx, agents), nil
}

func (o *statusOptions) find(ctx context.Context) ([]*fleet.Agent, error) {
	if o.pod == "" {
		return o.agents.find(ctx)
	}
	c, err := o.agents.through()
	if err != nil {
		return nil, err
	}
	node, err := nodeOf(ctx, c, o.pod)
	if err != nil {
		return nil, err
	}
	return o.agents.among(ctx, c, []string{node})
}
