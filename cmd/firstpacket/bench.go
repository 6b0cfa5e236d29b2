package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/report"
	"github.com/firstpacket/firstpacket/bench/scenario"
)

// Bounds of a run, far above what it takes: a benchmark that hangs has to end, too.
const (
	quickBench = 2 * time.Minute
	fullBench  = 30 * time.Minute
)

func newBench() *cobra.Command {
	var quick, asJSON bool
	var out string
	var only []string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure firstpacket beside no firewall, static rules and plain NFQUEUE loops",
		Long: `Measure firstpacket, in network namespaces made for it: new connections a second, throughput, the
verdict function, the time from a policy's change to connections that obey it, memory. Each figure is taken side by
side with what it is compared to, and printed only if client, server and kernel have counted the same.

It runs as root, or as anyone who may make user namespaces. Progress goes to stderr. Scenario groups: ` +
			strings.Join(scenario.Groups(), ", ") + `.`,
		Example: `  # the headline figures, in less than a minute
  firstpacket bench --quick

  # everything, with a report in Markdown, JSON and HTML
  firstpacket bench --output bench/out`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range only {
				if !slices.Contains(scenario.Groups(), name) {
					return errUsage{fmt.Errorf("no scenario group %q; there are %s", name, strings.Join(scenario.Groups(), ", "))}
				}
			}
			if err := ns.Enter(); err != nil {
				return err
			}
			limit := fullBench
			if quick {
				limit = quickBench
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			r, err := scenario.Run(ctx, scenario.Config{
				Worker: []string{"/proc/self/exe", "bench", "worker"}, Agent: "/proc/self/exe",
				Quick: quick, Only: only, Log: cmd.ErrOrStderr(),
			})
			if r == nil {
				return err
			}
			r.Machine.Version = versionString()
			write := r.WriteMarkdown
			if asJSON {
				write = r.WriteHeadlines
			}
			err = errors.Join(err, write(cmd.OutOrStdout()))
			if out != "" {
				err = errors.Join(err, writeReport(r, out))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&quick, "quick", false, "take the headline figures only")
	f.BoolVar(&asJSON, "json", false, "print one JSON object with the headline figures instead of Markdown")
	f.StringVarP(&out, "output", "o", "", "write report.json, report.md and report.html to this directory")
	f.StringSliceVar(&only, "only", nil, "run these scenario groups only")
	cmd.AddCommand(newBenchWorker())
	return cmd
}

// newBenchWorker is the command that the benchmarks start their own processes with.
func newBenchWorker() *cobra.Command {
	return &cobra.Command{
		Use:    "worker ROLE",
		Short:  "A process of a running benchmark",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return scenario.Worker(args[0]) },
	}
}

func writeReport(r *report.Report, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	for name, write := range map[string]func(io.Writer) error{
		"report.json": r.WriteJSON, "report.md": r.WriteMarkdown, "report.html": r.WriteHTML,
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}
