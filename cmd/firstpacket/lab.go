package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/bench/lab/demo"
	"github.com/firstpacket/firstpacket/bench/lab/matrix"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

func newLab() *cobra.Command {
	var opts demo.Options
	var manifests string
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run a cluster in network namespaces and show who reaches whom",
		Long: `Run a cluster on this machine from ordinary manifests: every node and pod is a network namespace, each node has
its own agent, and everything vanishes with the process. Then probe every pair of pods at every port, over IPv4 and
IPv6, TCP and UDP, and print what was observed next to what policy says.

The exit status is 1 if any cell differs. Without --manifests, the cluster is a small shop.`,
		Example: `  # the demo
  firstpacket lab

  # edit the manifests while it runs, and see what changes
  firstpacket lab --watch --dir ./shop

  # look at it in a browser, from another terminal
  firstpacket lab --watch --sockets /tmp/shop
  firstpacket ui --agent unix:/tmp/shop/node-a.sock --agent unix:/tmp/shop/node-b.sock

  # your own cluster; pods and nodes without addresses get some
  firstpacket lab --manifests ./cluster -- --deny-with reject`,
		Args: cobra.ArbitraryArgs, // those after -- go to the agents
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 && len(args) > 0 {
				return errUsage{fmt.Errorf("lab takes no arguments, but got %q; those for the agents come after --", args)}
			}
			if err := ns.Enter(); err != nil {
				return err
			}
			var err error
			if opts.Sockets != "" {
				if err := os.MkdirAll(opts.Sockets, 0o700); err != nil {
					return fmt.Errorf("directory of the sockets: %w", err)
				}
			}
			if opts.AgentBinary, err = os.Executable(); err != nil {
				return fmt.Errorf("find this program to run it as the agent: %w", err)
			}
			if manifests != "" {
				if opts.Objects, err = topology.Load(os.DirFS(manifests), "."); err != nil {
					return err
				}
			}
			opts.AgentArgs, opts.Style = args, matrix.StyleFor(cmd.OutOrStdout())
			return demo.Run(cmd.Context(), cmd.OutOrStdout(), opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&manifests, "manifests", "", "the cluster to run: a directory of manifests (default: a small shop)")
	f.StringVar(&opts.Dir, "dir", "", "keep the completed manifests here, for --watch (default: a temporary directory)")
	f.BoolVar(&opts.Watch, "watch", false, "go on, and show what changes when the manifests in --dir are edited")
	f.StringVar(&opts.Sockets, "sockets", "",
		"have each agent serve on a unix socket NODE.sock in this directory too, for 'firstpacket ui --agent unix:...'")
	f.BoolVar(&opts.Bridged, "bridged", false, "join the pods of a node by a bridge instead of routing to each")
	cmd.AddCommand(newLabTest())
	return cmd
}
