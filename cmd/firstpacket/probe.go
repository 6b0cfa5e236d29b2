package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/proxy/health"
)

// newProbe is for the kubelet: an exec probe reaches the agent of its own container, where a port of the node's would
// be answered by whichever agent has it while two overlap.
func newProbe() *cobra.Command {
	var address string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "probe [PATH]",
		Short: "Ask a running agent whether it is alive or ready",
		Long: `Ask a running agent for /readyz (it enforces), or for /healthz (it runs). The exit status is 0 if the answer is
yes; otherwise the answer is printed.`,
		Example: `  # in the agent's container, as the DaemonSet does
  firstpacket probe /readyz

  # an agent that was started by hand
  firstpacket probe --http-address 127.0.0.1:9099`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			path := "/readyz"
			if len(args) == 1 {
				path = args[0]
			}
			return health.Probe(ctx, address, path)
		},
	}
	f := cmd.Flags()
	f.StringVar(&address, "http-address", "unix:/run/firstpacket/agent.sock", "one of the agent's --http-address")
	f.DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}
