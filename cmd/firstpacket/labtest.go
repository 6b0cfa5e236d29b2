package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/bench/lab/cases"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// newLabTest is "firstpacket lab test".
func newLabTest() *cobra.Command {
	var o labTest
	cmd := &cobra.Command{
		Use:   "test [TOPIC | TOPIC/NAME]...",
		Short: "Run the NetworkPolicy cases on real packets",
		Long: `Run the NetworkPolicy cases, all of them or those of a topic or a name, on real packets between pods that are
network namespaces. Each case is run on one node and on two, with packets dropped and rejected, on IPv4 and IPv6.
Cells that differ from what a case expects are printed. It runs as root, or as anyone who may make user namespaces.`,
		Example: `  firstpacket lab test
  firstpacket lab test ports ipblock/except
  firstpacket lab test --list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.out = cmd.OutOrStdout()
			found, err := cases.Find(args...)
			if err != nil {
				return errUsage{err}
			}
			if o.list {
				for _, c := range found {
					fmt.Fprintf(o.out, "%s\n    %s\n", c.Name, strings.ReplaceAll(c.Text, "\n", "\n    "))
				}
				return nil
			}
			return o.run(cmd.Context(), found)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.list, "list", false, "print what each case shows, and run nothing")
	f.StringVar(&o.agent, "agent", "", "the firstpacket binary to run on the nodes (default: this one)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print cases that pass, too")
	return cmd
}

// atOnce is how many cases are under way: while one waits for silence in a lab, another may have a lab that is free.
const atOnce = 3

type labTest struct {
	out           io.Writer
	agent         string
	list, verbose bool
}

func (o *labTest) run(ctx context.Context, found []*cases.Case) (err error) {
	// Everything from here on is in a network namespace of its own.
	if err := ns.Enter(); err != nil {
		return err
	}
	if o.agent == "" {
		if o.agent, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w; name one with --agent", err)
		}
	}
	runner := cases.NewRunner(o.agent)
	defer func() { err = errors.Join(err, runner.Close()) }()

	started, probes := time.Now(), 0
	var failed []string
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, c := range found {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			reports, err := runAll(ctx, runner, c)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range reports {
				probes += r.Probes
			}
			if !o.print(c, reports, err) {
				failed = append(failed, c.Name)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil || ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Fprintf(o.out, "%d cases, %d connections, %s\n", len(found), probes, time.Since(started).Round(time.Second))
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d cases failed: %s", len(failed), len(found), strings.Join(failed, " "))
	}
	return nil
}

// runAll runs the case in every variant at once.
func runAll(ctx context.Context, runner *cases.Runner, c *cases.Case) ([]cases.Report, error) {
	var group errgroup.Group
	reports := make([]cases.Report, len(cases.Variants))
	for i, v := range cases.Variants {
		group.Go(func() (err error) {
			reports[i], err = runner.Run(ctx, c, v)
			return err
		})
	}
	return reports, group.Wait()
}

// print tells how the case went and says whether it passed.
func (o *labTest) print(c *cases.Case, reports []cases.Report, err error) bool {
	failed := err != nil || slices.ContainsFunc(reports, func(r cases.Report) bool { return len(r.Failures) > 0 })
	if !failed {
		if o.verbose {
			fmt.Fprintf(o.out, "ok    %s\n", c.Name)
		}
		return true
	}
	fmt.Fprintf(o.out, "FAIL  %s: %s\n", c.Name, c.Text)
	if err != nil {
		fmt.Fprintf(o.out, "      %v\n", err)
	}
	for i, r := range reports {
		for _, f := range r.Failures {
			fmt.Fprintf(o.out, "      %s: %s\n", cases.Variants[i], f)
		}
	}
	return false
}
