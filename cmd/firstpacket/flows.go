package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/proxy/flowread"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
)

// flowsOptions say which flows are shown, and from where.
type flowsOptions struct {
	filter flowread.Filter
	agents agentsFlags
	files  []string
	socket string
	follow bool
	since  time.Duration
	output string
}

func newFlows() *cobra.Command {
	var o flowsOptions
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show denied flows",
		Long: `Show the flows that agents denied. Where an agent runs on this machine, those of its own node, from its
socket; else, or with --kubeconfig, --context or --node, those of all agents of a cluster, through its API server; or
those of agents at addresses (--agent) or of flow logs (--file). They are merged by time. --follow goes on as more are
denied: files are followed through rotation, and agents of a cluster through restarts. An agent that cannot be reached
is named on stderr, and the others are shown.

Exit status: 0 success, 1 nothing can be read, or the agent ended the stream, 2 wrong usage.`,
		Example: `  # what is denied in the cluster, from now on
  firstpacket flows --context my-cluster --follow

  # what is denied on this node
  firstpacket flows --follow

  # why does this pod not get through? from the log files of two nodes
  firstpacket flows --file node-a.log --file node-b.log --pod shop/web-1

  # what one policy denies, as JSON lines
  kubectl logs -n firstpacket ds/firstpacket | firstpacket flows --file - --policy shop/db -o json`,
		Args: noArgs,
	}
	o.agents.Connection.Add(cmd)
	o.agents.add(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&o.files, "file", nil, "read this flow log, - for stdin; repeatable")
	f.StringVar(&o.socket, "socket", flowstream.DefaultPath, "socket of the agent on this node")
	f.BoolVar(&o.follow, "follow", false, "go on as more flows are denied")
	f.StringVar(&o.filter.Pod, "pod", "", "only flows from or to this pod, as namespace/name")
	f.StringVarP(&o.filter.Namespace, "namespace", "n", "", "only flows from or to pods of this namespace")
	f.StringVar(&o.filter.Policy, "policy", "", "only flows that this policy had a part in, as namespace/name or name")
	f.DurationVar(&o.since, "since", 0, "only flows that are not older than this, like 10m")
	verdict := &choice{allowed: []string{"deny", "would-deny", "would-allow"}}
	f.Var(verdict, "verdict", "only flows with this verdict")
	complete(cmd, "verdict", verdict.allowed...)
	output := outputFlag(cmd, "table", "json")
	for _, other := range []string{"agent", "node", "kubeconfig", "context"} {
		cmd.MarkFlagsMutuallyExclusive("file", "socket", other)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.filter.Verdict, o.output = verdict.value, output.value
		if o.since > 0 {
			o.filter.Since = time.Now().Add(-o.since)
		}
		if err := o.filter.Validate(); err != nil {
			return errUsage{err}
		}
		if o.fleet(cmd) {
			return o.runFleet(cmd)
		}
		return o.run(cmd)
	}
	return cmd
}

// fleet tells whether agents are asked over HTTP, and not files or the socket of this node's.
func (o *flowsOptions) fleet(cmd *cobra.Command) bool {
	switch {
	case len(o.files) > 0 || cmd.Flags().Changed("socket"):
		return false
	case len(o.agents.addresses) > 0 || o.agents.cluster():
		return true
	}
	_, err := os.Stat(o.socket)
	return errors.Is(err, os.ErrNotExist)
}

// errStreamEnd says what the end of a stream may mean.
var errStreamEnd = errors.New("the agent ended the stream: it stopped, has too many readers, or this one was too slow")

func (o *flowsOptions) run(cmd *cobra.Command) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	sources, closeAll, err := o.open(ctx, cmd.InOrStdin())
	defer closeAll()
	if err != nil {
		return err
	}
	// The end of the command is the end of its sources; files end by themselves.
	defer context.AfterFunc(ctx, closeAll)()

	sink := o.sink(cmd)
	var st flowread.Stats
	if o.follow {
		var window time.Duration
		if len(sources) > 1 {
			window = flowread.Window
		}
		st, err = flowread.Follow(sources, o.filter, sink, window, cancel)
	} else {
		st, err = flowread.Merge(sources, o.filter, sink)
	}
	warnUnreadable(cmd, st)
	switch {
	case cmd.Context().Err() != nil:
		return nil // the user has seen enough
	case err == nil && o.follow && len(o.files) == 0:
		return errStreamEnd
	}
	return err
}

// sink prints what is picked.
func (o *flowsOptions) sink(cmd *cobra.Command) flowread.Sink {
	out := cmd.OutOrStdout()
	if o.output == "json" {
		return flowread.NewJSON(out)
	}
	return flowread.NewTable(out, terminal.Style(out), time.Local)
}

func warnUnreadable(cmd *cobra.Command, st flowread.Stats) {
	if st.Unreadable > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "firstpacket: warning: lines that are no flows, left out: %d\n", st.Unreadable)
	}
}

// open opens what is to be read. The function it returns closes what needs to be told.
func (o *flowsOptions) open(ctx context.Context, stdin io.Reader) ([]flowread.Source, func(), error) {
	if len(o.files) == 0 {
		conn, err := flowstream.Dial(ctx, o.socket, flowstream.Request{Recent: -1, Follow: o.follow})
		if err != nil {
			return nil, func() {}, fmt.Errorf("%w; run this on the agent's node, or read its flow log with --file", err)
		}
		return []flowread.Source{{Name: o.socket, Reader: conn}}, func() { conn.Close() }, nil
	}
	var sources []flowread.Source
	for _, name := range o.files {
		if name == "-" {
			sources = append(sources, flowread.Source{Name: "stdin", Reader: stdin})
			continue
		}
		r, err := o.file(ctx, name)
		if err != nil {
			return nil, func() {}, err
		}
		sources = append(sources, flowread.Source{Name: name, Reader: r})
	}
	return sources, func() {}, nil
}

// file opens a flow log for the life of the process.
func (o *flowsOptions) file(ctx context.Context, name string) (io.Reader, error) {
	if o.follow {
		return flowread.OpenTail(ctx, name, true)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("flow log: %w", err)
	}
	return f, nil
}
