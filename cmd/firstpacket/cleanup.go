package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/mark"
)

func newCleanup() *cobra.Command {
	mask := mark.Default
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that firstpacket left in this node's kernel",
		Long: `Remove the nftables table and the conntrack marks of firstpacket from this network namespace. Stop the agent
first. From then on nothing is enforced. Running it again does no harm.`,
		Example: "  firstpacket cleanup",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flows, err := agent.Cleanup(mask)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed table inet firstpacket and the marks of %d flows\n", flows)
			return err
		},
	}
	cmd.Flags().Var(maskValue{&mask}, "mark-mask", "the mask that the agent used")
	return cmd
}
