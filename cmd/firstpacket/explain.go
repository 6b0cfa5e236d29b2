package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/term"
)

func newExplain() *cobra.Command {
	var flags clusterflags.Flags
	var q explain.Question
	var address string
	cmd := &cobra.Command{
		Use:   "explain --from WHO --to WHO --port PORT",
		Short: "Say whether a connection is allowed, and why",
		Long: `Say whether a connection is allowed, with every policy and rule that was considered, in order. It asks the
engine that enforces: about a live cluster, about manifests, or inside a running agent, which knows its own node's side.

WHO is namespace/pod, a pod's name in the namespace of -n, node/name, or an address. --to also takes svc/name and
svc/namespace/name, and then explains the way to each pod behind the service. PORT is 80/TCP, 80, the name of a port of
the destination, or ICMP.

Exit status: 0 allowed, 3 denied (if several flows are meant: any of them), 1 no answer, 2 wrong usage.`,
		Example: `  # in the cluster of the current context
  firstpacket explain --from shop/web-1 --to shop/db-1 --port 5432/TCP

  # from manifests, as JSON
  firstpacket explain --manifests ./cluster --from shop/web-1 --to 192.0.2.7 --port 443 -o json

  # what a running agent would do with the next packet
  firstpacket explain --agent 127.0.0.1:9099 -n shop --from web-1 --to db-1 --port postgres`,
		Args: noArgs,
	}
	flags.Add(cmd)
	output := outputFlag(cmd, "text", "json")
	f := cmd.Flags()
	f.StringVar(&q.From, "from", "", "who opens the connection")
	f.StringVar(&q.To, "to", "", "to whom")
	f.StringVarP(&q.Port, "port", "p", "", "destination port, with its protocol unless that is TCP")
	agentFlag(cmd, &address, "")
	cmd.MarkFlagsMutuallyExclusive("agent", "manifests")
	cmd.MarkFlagsMutuallyExclusive("agent", "kubeconfig")
	cmd.MarkFlagsMutuallyExclusive("agent", "context")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var verdict engine.Action
		var err error
		if address != "" {
			q.Namespace = flags.Namespace
			verdict, err = explainByAgent(cmd, address, q, output.value)
		} else {
			flags.WithServices = strings.HasPrefix(q.To, "svc/")
			verdict, err = explainHere(cmd, &flags, q, output.value)
		}
		switch {
		case errors.Is(err, explain.ErrQuestion):
			return errUsage{err}
		case err != nil:
			return err
		case verdict != engine.Allow:
			return errNo
		}
		return nil
	}
	return cmd
}

func explainHere(
	cmd *cobra.Command, flags *clusterflags.Flags, q explain.Question, output string,
) (engine.Action, error) {
	c, err := flags.Load(cmd.Context(), userAgent(), cmd.ErrOrStderr())
	if err != nil {
		return engine.Deny, err
	}
	q.Namespace = c.Namespace
	a, err := explain.Ask(c.Asked(), q)
	if err != nil {
		return engine.Deny, err
	}
	out := cmd.OutOrStdout()
	if output == "json" {
		return a.Verdict, a.WriteJSON(out)
	}
	return a.Verdict, a.WriteText(out, terminal.Style(out))
}

func explainByAgent(cmd *cobra.Command, address string, q explain.Question, output string) (engine.Action, error) {
	ctx, client, host, cancel := toAgent(cmd.Context(), address)
	defer cancel()
	var style *term.Style
	if output != "json" {
		s := terminal.Style(cmd.OutOrStdout())
		style = &s
	}
	r, err := explain.AskAgent(ctx, client, host, q, style)
	if err != nil {
		return engine.Deny, err
	}
	_, err = cmd.OutOrStdout().Write(r.Body)
	return r.Verdict, err
}
