package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/fleet"
)

// choice is the value of a flag that takes one of a few words.
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }

func (c *choice) Type() string { return strings.Join(c.allowed, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}

// outputFlag adds -o. The first of the formats is the default.
func outputFlag(cmd *cobra.Command, formats ...string) *choice {
	c := &choice{value: formats[0], allowed: formats}
	cmd.Flags().VarP(c, "output", "o", "format of the output")
	complete(cmd, "output", formats...)
	return c
}

// complete tells the shell the words that a flag takes.
func complete(cmd *cobra.Command, flag string, words ...string) {
	fixed := cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc(flag, fixed); err != nil {
		panic(err) // only for flags that do not exist
	}
}

// agentFlag adds --agent.
func agentFlag(cmd *cobra.Command, address *string, def string) {
	cmd.Flags().StringVar(address, "agent", def, "ask the agent that serves this address: its --http-address, "+
		"host:port or unix:PATH, "+
		"on its node or through kubectl port-forward (commonly "+agent.DefaultHTTPAddress+")")
}

// agentPatience is how long an agent may take to answer.
const agentPatience = 10 * time.Second

// toAgent gives a client, a host and a context for questions to the agent at an address.
func toAgent(ctx context.Context, address string) (context.Context, *http.Client, string, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	a := fleet.At(address)
	client, base := a.Client()
	return ctx, client, base.Host, func() {
		a.Close()
		cancel()
	}
}

func userAgent() string { return "firstpacket/" + versionString() }
