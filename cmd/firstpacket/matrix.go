package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/reach"
)

func newMatrix() *cobra.Command {
	var flags clusterflags.Flags
	var selectors, ports, addresses []string
	var nodes bool
	cmd := &cobra.Command{
		Use:   "matrix [-n NAMESPACE | --selector SELECTOR ...] [--port PORT ...]",
		Short: "Show who reaches whom",
		Long: `Show who reaches whom, at which ports, by the engine that enforces.

Rows and columns are the namespaces; with -n, the pods of that namespace, those with equal labels as one; with
--selector, once for each, the pods that it matches, in the namespace of -n or in all. --address adds an address outside
of the cluster, and --nodes the nodes, which are the pods on the host network too: policies cannot tell these from their
node. A node and its own pods always reach each other and are not counted. Without --port every port is asked for, and
the cells name the ranges that are allowed.

Exit status: 0 success, 1 failure, 2 wrong usage.`,
		Example: `  # namespaces of the current context's cluster
  firstpacket matrix

  # who reaches the database inside one namespace, and from the internet, as a page
  firstpacket matrix --manifests ./cluster -n shop --address 198.51.100.7 --port 5432/TCP -o html

  # two sets of pods
  firstpacket matrix --manifests ./cluster --selector app=web --selector 'tier in (db,cache)' -o csv`,
		Args: noArgs,
	}
	flags.Add(cmd)
	output := outputFlag(cmd, "text", "csv", "html", "json")
	f := cmd.Flags()
	f.StringArrayVarP(&selectors, "selector", "l", nil, "label selector of pods that are one row and column; repeatable")
	f.StringArrayVarP(&ports, "port", "p", nil, "port to ask for, like 80/TCP or ICMP; repeatable (default: every port)")
	f.StringArrayVar(&addresses, "address", nil, "address outside of the cluster that is one row and column; repeatable")
	f.BoolVar(&nodes, "nodes", false, "nodes, and so pods on the host network, are one row and column")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var opts reach.Options
		for _, text := range ports {
			span, err := reach.ParseSpan(text)
			if err != nil {
				return errUsage{err}
			}
			opts.Ports = append(opts.Ports, span)
		}
		var more []reach.Group
		for _, text := range selectors {
			g, err := reach.Selection(text, flags.Namespace)
			if err != nil {
				return errUsage{err}
			}
			more = append(more, g)
		}
		for _, text := range addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return errUsage{fmt.Errorf("--address: %w", err)}
			}
			more = append(more, reach.Address(a))
		}
		if nodes {
			more = append(more, reach.Nodes())
		}
		c, err := flags.Load(cmd.Context(), userAgent(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		world := c.World()
		switch {
		case len(selectors) > 0:
		case flags.Namespace != "":
			if opts.Groups = reach.Workloads(world, flags.Namespace); len(opts.Groups) == 0 {
				return fmt.Errorf("no pod with an address in namespace %s", flags.Namespace)
			}
		default:
			opts.Groups = reach.Namespaces(world)
		}
		opts.Groups = append(opts.Groups, more...)
		return drawMatrix(cmd, world, opts, output.value)
	}
	return cmd
}

func drawMatrix(cmd *cobra.Command, world reach.World, opts reach.Options, output string) error {
	progress := terminal.NewProgress(cmd.ErrOrStderr(), "asking who reaches whom")
	opts.Progress = progress.Tell
	m := reach.NewMatrix(world, opts)
	progress.Done()
	out := cmd.OutOrStdout()
	switch output {
	case "csv":
		return m.WriteCSV(out)
	case "html":
		return m.WriteHTML(out)
	case "json":
		return m.WriteJSON(out)
	}
	return m.WriteText(out, terminal.Style(out))
}
