package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/terminal"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/term"
	"github.com/firstpacket/firstpacket/proxy/fleet"
)

// explainedBy says which agents explain.
type explainedBy struct {
	agents agentsFlags
	both   bool
}

func (e *explainedBy) add(cmd *cobra.Command) {
	e.agents.add(cmd)
	cmd.Flags().BoolVar(&e.both, "agents", false,
		"ask the agents of the nodes that the two run on, through the API server")
	cmd.MarkFlagsMutuallyExclusive("agents", "agent", "node", "manifests")
}

// given tells whether agents are to explain.
func (e *explainedBy) given() bool {
	return e.both || len(e.agents.addresses) > 0 || len(e.agents.nodes) > 0
}

// explain asks the agents and prints what they say.
func (e *explainedBy) explain(cmd *cobra.Command, q explain.Question, output string) (engine.Action, error) {
	all, err := e.ask(cmd, q, output)
	if err != nil {
		return engine.Deny, err
	}
	// What cannot be asked is one sentence, and not part of an answer.
	var failed []error
	for i := range all {
		if all[i].Err != nil {
			failed = append(failed, all[i].Err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		if len(e.agents.addresses) > 0 && !errors.Is(err, explain.ErrQuestion) {
			err = fmt.Errorf("%w; give the --http-address that it runs with as --agent", err)
		}
		return engine.Deny, err
	}
	out := cmd.OutOrStdout()
	switch {
	case output == "json" && len(all) > 1:
		err = writeExplained(cmd, all)
	case output == "json":
		_, err = out.Write(all[0].Body)
	default:
		_, err = out.Write(fleet.Words(all))
	}
	return fleet.Verdict(all), err
}

func (e *explainedBy) ask(cmd *cobra.Command, q explain.Question, output string) ([]fleet.Explained, error) {
	ctx := cmd.Context()
	if len(e.agents.addresses) == 0 && q.Namespace == "" {
		var err error
		if _, q.Namespace, err = e.agents.Config(); err != nil {
			return nil, err
		}
	}
	defer terminal.NewProgress(cmd.ErrOrStderr(), "asking agents").Wait()()
	agents, err := e.find(ctx, q)
	if err != nil {
		return nil, err
	}
	defer closeAgents(agents)
	var style *term.Style
	if output != "json" {
		s := terminal.Style(cmd.OutOrStdout())
		style = &s
	}
	return fleet.Explain(ctx, agents, q, style), nil
}

func (e *explainedBy) find(ctx context.Context, q explain.Question) ([]*fleet.Agent, error) {
	if !e.both {
		return e.agents.find(ctx)
	}
	c, err := e.agents.through()
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, word := range []string{q.From, q.To} {
		node, err := nodeOfParty(ctx, c, word, q.Namespace)
		if err != nil {
			return nil, err
		}
		if node != "" {
			nodes = append(nodes, node)
		}
	}
	if len(nodes) == 0 {
		return nil, errUsage{fmt.Errorf("neither %q nor %q is a pod or a node, so no agent has a say", q.From, q.To)}
	}
	return e.agents.among(ctx, c, nodes)
}

// nodeOfParty is the node of a word of the question; empty for addresses.
func nodeOfParty(ctx context.Context, c *fleet.Cluster, word, namespace string) (string, error) {
	if _, err := netip.ParseAddr(word); err == nil {
		return "", nil
	}
	kind, name, qualified := strings.Cut(word, "/")
	switch {
	case qualified && kind == "node":
		return name, nil
	case qualified && kind == "svc":
		return "", errUsage{errors.New("agents know pods and addresses, not services; ask about a pod behind it, " +
			"or without --agents")}
	case !qualified && word != "":
		if namespace == "" {
			namespace = corev1.NamespaceDefault
		}
		word = namespace + "/" + word
	}
	return nodeOf(ctx, c, word)
}

// writeExplained writes JSON with the answer of each agent.
func writeExplained(cmd *cobra.Command, all []fleet.Explained) error {
	type answer struct {
		Agent  string          `json:"agent"`
		Answer json.RawMessage `json:"answer"`
	}
	answers := make([]answer, len(all))
	for i := range all {
		answers[i] = answer{all[i].Agent.Name, all[i].Body}
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Verdict engine.Action `json:"verdict"`
		Agents  []answer      `json:"agents"`
	}{fleet.Verdict(all), answers})
}
