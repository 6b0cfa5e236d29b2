package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/overview"
)

func newStatus() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how an agent is, on one screen",
		Long: `Show how an agent is, on one screen: what it enforces, policies with problems, its queues, caches, sources
and last errors.

Exit status: 0 it enforces the newest state of its sources, 3 it does not, 1 it does not answer, 2 wrong usage.`,
		Example: `  # on its node
  firstpacket status

  # in the pod of an agent
  kubectl exec -n firstpacket ds/firstpacket -- /firstpacket status --agent unix:/run/firstpacket/agent.sock

  # from elsewhere
  kubectl port-forward -n firstpacket pod/firstpacket-x7k2p 9099 &
  firstpacket status --agent 127.0.0.1:9099 -o json`,
		Args: noArgs,
	}
	agentFlag(cmd, &address, agent.DefaultHTTPAddress)
	output := outputFlag(cmd, "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, client, host, cancel := toAgent(cmd.Context(), address)
		defer cancel()
		o, err := overview.Fetch(ctx, client, host)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if output.value == "json" {
			err = o.WriteJSON(out)
		} else {
			err = o.WriteText(out, terminal.Style(out), time.Now())
		}
		if err == nil && !o.Ready() {
			return errNo
		}
		return err
	}
	return cmd
}
