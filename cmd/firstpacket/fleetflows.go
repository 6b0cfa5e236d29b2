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

// warner tells of agents that cannot be read, and of those that can again.
type warner struct {
	out io.Writer
	mu  sync.Mutex
}

func (w *warner) tell(a *fleet.Agent, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		fmt.Fprintf(w.out, "firstpacket: %s: followed\n", a.Name)
		return
	}
	fmt.Fprintf(w.out, "firstpacket: warning: %v\n", err)
}

// runFleet shows the flows of agents that are asked over HTTP. One that cannot be read is said and left out.
func (o *flowsOptions) runFleet(cmd *cobra.Command) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	agents, err := o.agents.find(ctx)
	if err != nil {
		return err
	}
	warn := &warner{out: cmd.ErrOrStderr()}
	var st flowread.Stats
	if o.follow {
		closeAgents(agents) // what cannot work at all was said at once
		st, err = o.followFleet(ctx, cancel, cmd, warn)
	} else {
		defer closeAgents(agents)
		st, err = o.mergeFleet(ctx, cmd, agents, warn)
	}
	warnUnreadable(cmd, st)
	if cmd.Context().Err() != nil {
		return nil // the user has seen enough
	}
	return err
}

// mergeFleet shows what agents remember.
func (o *flowsOptions) mergeFleet(
	ctx context.Context, cmd *cobra.Command, agents []*fleet.Agent, warn *warner,
) (flowread.Stats, error) {
	var sources []flowread.Source
	var opened []io.Closer
	defer func() {
		for _, r := range opened {
			r.Close()
		}
	}()
	for _, a := range agents {
		r, err := a.Flows(ctx, false)
		if err != nil {
			warn.tell(a, err)
			continue
		}
		opened = append(opened, r)
		sources = append(sources, flowread.Source{
			Name: a.Name, Reader: &forgiving{r, func(err error) { warn.tell(a, err) }},
		})
	}
	if len(sources) == 0 {
		return flowread.Stats{}, fmt.Errorf("%w: see the warnings", errNobody)
	}
	return flowread.Merge(sources, o.filter, o.sink(cmd))
}

// followFleet shows what agents remember and what comes, of those that there are at any time.
func (o *flowsOptions) followFleet(
	ctx context.Context, cancel context.CancelFunc, cmd *cobra.Command, warn *warner,
) (flowread.Stats, error) {
	r, w := io.Pipe()
	var mu sync.Mutex
	watch := &fleet.Watch{
		Find: o.agents.find, Report: warn.tell,
		Publish: func(line []byte) {
			mu.Lock()
			defer mu.Unlock()
			_, _ = w.Write(line) // fails when nobody reads any more, and then all ends
		},
	}
	var running sync.WaitGroup
	running.Go(func() {
		defer w.Close()
		watch.Run(ctx)
	})
	all := []flowread.Source{{Name: "agents", Reader: r}}
	st, err := flowread.Follow(all, o.filter, o.sink(cmd), flowread.Window, func() {
		cancel()
		r.Close()
	})
	running.Wait()
	return st, err
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
