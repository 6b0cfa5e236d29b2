package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/reach"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/proxy/established"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/told"
)

func newSimulate() *cobra.Command {
	var flags clusterflags.Flags
	var files []string
	var remove, exitCode, flows bool
	markMask := mark.Default
	cmd := &cobra.Command{
		Use:   "simulate -f FILE",
		Short: "Say what applying manifests would change",
		Long: `Say which pods, nodes and addresses outside of the cluster would reach which pods at which other ports if the
manifests were applied, or deleted. Nothing is applied. Every port and every address is looked at; pods that no rule can
tell apart are told as one, with their number.

With --flows, on a node and with CAP_NET_ADMIN, it also says which flows that are established there would be cut, and
which of those that policy has cut would go on. What pods were told by DNS is known from this node's agent.

The manifests may hold policies of every dialect, namespaces, nodes and pods. What they have problems with is said on
stderr.

Exit status: 0 success; with --exit-code, 3 if any verdict or flow would change; 1 failure, 2 wrong usage.`,
		Example: `  # what a policy would do to the cluster of the current context
  firstpacket simulate -f policy.yaml

  # what its removal would do to a cluster of manifests; for scripts
  firstpacket simulate --manifests ./cluster -f policy.yaml --delete --exit-code -o json

  # whom it would cut off on this node
  firstpacket simulate --kubeconfig /etc/kubernetes/admin.conf -f policy.yaml --flows`,
		Args: noArgs,
	}
	flags.Add(cmd)
	output := outputFlag(cmd, "text", "json")
	f := cmd.Flags()
	filesFlag(cmd, &files, "manifests to apply: a file, a directory, or - for stdin; repeatable")
	f.BoolVar(&remove, "delete", false, "delete the objects of the manifests instead of applying them")
	f.BoolVar(&exitCode, "exit-code", false, "exit with 3 if any verdict or flow would change")
	f.BoolVar(&flows, "flows", false, "look at the flows established on this node too")
	f.Var(maskValue{&markMask}, "mark-mask", "the --mark-mask of this node's agent, for --flows")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(files) == 0 {
			return errUsage{errors.New("no manifests: give them with -f")}
		}
		c, err := flags.Load(cmd.Context(), userAgent(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if flows {
			if err := recall(c); err != nil {
				return err
			}
		}
		applied, err := c.Apply(stdinAsFile(files), remove)
		if err != nil {
			return err
		}
		warn(cmd.ErrOrStderr(), applied.Problems)
		var cut simulatedFlows
		if flows {
			if cut, err = simulateFlows(applied, markMask); err != nil {
				return err
			}
		}
		progress := terminal.NewProgress(cmd.ErrOrStderr(), "comparing")
		d := reach.Compare(applied.Before, applied.After, applied.Affected, progress.Tell)
		progress.Done()
		out := cmd.OutOrStdout()
		switch {
		case output.value == "json" && flows:
			err = cut.writeJSON(out, d)
		case output.value == "json":
			err = d.WriteJSON(out)
		default:
			if err = d.WriteText(out, terminal.Style(out)); err == nil && flows {
				err = established.WriteText(out, terminal.Style(out), cut.Flows, cut.Looked)
			}
		}
		if err == nil && exitCode && len(d.Changes)+len(cut.Flows) > 0 {
			return errNo
		}
		return err
	}
	return cmd
}

// simulatedFlows is what would become of the flows of this node.
type simulatedFlows struct {
	Flows []established.Change `json:"flows"`
	// Looked is the number of flows that were looked at.
	Looked int `json:"looked"`
}

func simulateFlows(applied *clusterflags.Applied, mask uint32) (s simulatedFlows, err error) {
	marks, err := mark.New(mask)
	if err != nil {
		return s, errUsage{err}
	}
	s.Flows, s.Looked, err = established.Flows(applied.Before.Snapshot, applied.After.Snapshot, marks)
	if err != nil {
		return s, fmt.Errorf("flows of this node: %w", err)
	}
	if s.Flows == nil {
		s.Flows = []established.Change{}
	}
	return s, nil
}

// recall has the cluster know what the agent of this node does of names: flows are open under them.
func recall(c *clusterflags.Cluster) error {
	kept, err := ruleset.ReadTold(0)
	if err != nil {
		return fmt.Errorf("flows of this node: %w", err)
	}
	c.Recall(told.NewClock().Facts(kept), told.Latest(time.Now()))
	return nil
}

// writeJSON writes the difference with the flows beside it.
func (s simulatedFlows) writeJSON(w io.Writer, d *reach.Difference) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	err := enc.Encode(struct {
		*reach.Difference
		simulatedFlows
	}{d, s})
	if err != nil {
		return fmt.Errorf("writing the difference: %w", err)
	}
	return nil
}

// warn says what could not be understood of policies.
func warn(w io.Writer, problems map[rule.Ref][]rule.Problem) {
	refs := slices.SortedFunc(maps.Keys(problems), func(a, b rule.Ref) int {
		return rule.Compare(&rule.Policy{Ref: a}, &rule.Policy{Ref: b})
	})
	for _, ref := range refs {
		for _, p := range problems[ref] {
			fmt.Fprintf(w, "firstpacket: warning: %s fails closed: %s\n", ref, p)
		}
	}
}

// filesFlag adds -f.
func filesFlag(cmd *cobra.Command, files *[]string, usage string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, usage)
	if err := cmd.MarkFlagFilename("filename", "yaml", "yml", "json"); err != nil {
		panic(err) // only for flags that do not exist
	}
}

// stdinAsFile gives - a name that can be opened.
func stdinAsFile(files []string) []string {
	named := slices.Clone(files)
	for i, f := range named {
		if f == "-" {
			named[i] = "/dev/stdin"
		}
	}
	return named
}
