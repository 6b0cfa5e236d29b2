package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
)

func newExplain() *cobra.Command {
	var flags clusterflags.Flags
	var asked explainedBy
	var q explain.Question
	cmd := &cobra.Command{
		Use:   "explain --from WHO --to WHO --port PORT",
		Short: "Say whether a connection is allowed, and why",
		Long: `Say whether a connection is allowed, with every policy and rule that was considered, in order. It asks the
engine that enforces: about a live cluster, about manifests, or inside running agents.

WHO is namespace/pod, a pod's name in the namespace of -n, node/name, or an address. --to also takes svc/name and
svc/namespace/name, and then explains the way to each pod behind the service. PORT is 80/TCP, 80, the name of a port of
the destination, or ICMP.

The agents that enforce are asked with --agents, those of the nodes of both parties, with --node, or at addresses with
--agent. Each of them judges its own node's side, by what it has in force: a connection needs them all.

Exit status: 0 allowed, 3 denied (if several flows or agents are asked: by any of them), 1 no answer, 2 wrong usage.`,
		Example: `  # in the cluster of the current context
  firstpacket explain --from shop/web-1 --to shop/db-1 --port 5432/TCP

  # from manifests, as JSON
  firstpacket explain --manifests ./cluster --from shop/web-1 --to 192.0.2.7 --port 443 -o json

  # what the agents of both nodes do with the next packet, through the API server
  firstpacket explain --agents --from shop/web-1 --to shop/db-1 --port 5432

  # what the agent of this node does with it
  firstpacket explain --agent 127.0.0.1:9099 -n shop --from web-1 --to db-1 --port postgres`,
		Args: noArgs,
	}
	flags.Add(cmd)
	output := outputFlag(cmd, "text", "json")
	f := cmd.Flags()
	f.StringVar(&q.From, "from", "", "who opens the connection")
	f.StringVar(&q.To, "to", "", "to whom")
	f.StringVarP(&q.Port, "port", "p", "", "destination port, with its protocol unless that is TCP")
	asked.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if q.From == "" || q.To == "" || q.Port == "" { // said before anybody is asked
			return errUsage{errNoQuestion}
		}
		var verdict engine.Action
		var err error
		if asked.given() {
			asked.agents.Connection, q.Namespace = flags.Connection, flags.Namespace
			verdict, err = asked.explain(cmd, q, output.value)
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

var errNoQuestion = errors.New("--from, --to and --port are needed: who connects, to whom, and where, like 80/TCP")

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
