package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/proxy/fleet"
	"github.com/firstpacket/firstpacket/proxy/flowread"
)

// errNobody is returned when no agent at all could be read.
var errNobody = errors.New("no agent could be read")

// runFleet shows the flows of agents that are asked over HTTP. One that cannot be read is said and left out.
func (o *flowsOptions) runFleet(cmd *cobra.Command) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	agents, err := o.agents.find(ctx)
	if err != nil {
		return err
	}
	defer closeAgents(agents)
	var mu sync.Mutex
	warn := func(a *fleet.Agent, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "firstpacket: %s: answers again\n", a.Name)
			return
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "firstpacket: warning: %v\n", err)
	}
	var sources []flowread.Source
	var opened []io.Closer
	defer func() {
		for _, r := range opened {
			r.Close()
		}
	}()
	for _, a := range agents {
		if o.follow {
			r := a.Follow(ctx, func(err error) { warn(a, err) })
			sources = append(sources, flowread.Source{Name: a.Name, Reader: r})
			continue
		}
		r, err := a.Flows(ctx, false)
		if err != nil {
			warn(a, err)
			continue
		}
		opened = append(opened, r)
		sources = append(sources, flowread.Source{Name: a.Name, Reader: &forgiving{r, func(err error) { warn(a, err) }}})
	}
	if len(sources) == 0 {
		return fmt.Errorf("%w: see the warnings", errNobody)
	}
	var st flowread.Stats
	if o.follow {
		st, err = flowread.Follow(sources, o.filter, o.sink(cmd), cancel)
	} else {
		st, err = flowread.Merge(sources, o.filter, o.sink(cmd))
	}
	warnUnreadable(cmd, st)
	if cmd.Context().Err() != nil {
		return nil // the user has seen enough
	}
	return err
}

// forgiving ends where its reader fails: what came before it, and other agents, are worth showing.
type forgiving struct {
	io.Reader
	report func(error)
}

// Read implements io.Reader.
func (r *forgiving) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.report(err)
		err = io.EOF
	}
	return n, err
}
