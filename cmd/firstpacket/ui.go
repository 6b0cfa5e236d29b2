package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/clusterflags"
	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/reach"
	"github.com/firstpacket/firstpacket/proxy/fleet"
	"github.com/firstpacket/firstpacket/proxy/flowread"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/page"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

// uiOptions say what the page shows and where it is served.
type uiOptions struct {
	agents  agentsFlags
	cluster clusterflags.Flags
	files   []string
	listen  string
	expose  bool
}

func newUI() *cobra.Command {
	var o uiOptions
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a web page with what the agents do",
		Long: `Serve a web page: denied flows as they come, who talks to whom and who may, what each policy had to do with
it, and a form that asks why. It shows the agents of a cluster, through its API server; those at addresses (--agent),
with what --manifests allow; or, with --manifests alone, no agent at all: flow logs (--file) and what the manifests
explain.

The page only reads. It is served on loopback addresses unless --expose is given: it has no authentication of its own.

Exit status: 0 ended by Ctrl-C, 1 failure, 2 wrong usage.`,
		Example: `  # all agents of the current context's cluster
  firstpacket ui

  # the agent of this node
  firstpacket ui --agent 127.0.0.1:9099

  # a flow log, with the policies it came from
  firstpacket ui --manifests ./cluster --file flows.log`,
		Args: noArgs,
	}
	o.cluster.Add(cmd)
	o.agents.add(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&o.files, "file", nil, "with --manifests: show this flow log, and follow it; repeatable")
	f.StringVar(&o.listen, "listen", "127.0.0.1:9098", "serve the page on this address")
	f.BoolVar(&o.expose, "expose", false, "serve it on other addresses than loopback, to whoever reaches them")
	cmd.MarkFlagsMutuallyExclusive("node", "manifests")
	cmd.MarkFlagsMutuallyExclusive("agent", "file")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o.agents.Connection = o.cluster.Connection
		if len(o.files) > 0 && len(o.cluster.Manifests) == 0 {
			return errUsage{errors.New("--file needs --manifests")}
		}
		return o.run(cmd)
	}
	return cmd
}

func (o *uiOptions) run(cmd *cobra.Command) error {
	group, ctx := errgroup.WithContext(cmd.Context())
	hub := flowstream.NewHub(0, 0)
	var cfg page.Config
	var err error
	if len(o.cluster.Manifests) > 0 && len(o.agents.addresses) == 0 {
		cfg, err = o.manifests(ctx, group, cmd, hub)
	} else {
		cfg, err = o.live(ctx, group, cmd, hub)
	}
	if err != nil {
		return err
	}
	group.Go(func() error { return o.serve(ctx, cmd, cfg) })
	return group.Wait()
}

// live shows agents.
func (o *uiOptions) live(
	ctx context.Context, group *errgroup.Group, cmd *cobra.Command, hub *flowstream.Hub,
) (page.Config, error) {
	// What cannot work at all is said at once, and not on a page.
	agents, err := o.agents.find(ctx)
	if err != nil {
		return page.Config{}, err
	}
	watch := &fleet.Watch{Find: o.agents.find, Publish: hub.Publish}
	group.Go(func() error { watch.Run(ctx); return nil })
	cfg := page.Config{
		Title: fmt.Sprintf("%d agents", len(agents)), Flows: hub, Traffic: watch.Traffic, Agents: watch.Agents,
	}
	switch {
	case len(o.agents.addresses) == 0:
		closeAgents(agents)
		cfg.Title = cmp.Or(o.cluster.Context, "cluster")
		o.cluster.WithServices = true
		live := o.cluster.Live(userAgent())
		group.Go(func() error { live.Run(ctx); return nil })
		cfg.Explain = explain.HandlerOf(live.Asked)
		cfg.Possible = showPossible(ctx, group, live.World)
	default:
		if len(agents) == 1 {
			cfg.Title = agents[0].Name
		}
		cfg.Explain = fleet.Explainer(agents)
		if len(o.cluster.Manifests) > 0 {
			c, err := o.cluster.Load(ctx, userAgent(), cmd.ErrOrStderr())
			if err != nil {
				closeAgents(agents)
				return page.Config{}, err
			}
			cfg.Possible = showPossible(ctx, group, fixed(c))
		}
	}
	return cfg, nil
}

// fixed is a cluster that does not change.
func fixed(c *clusterflags.Cluster) func() (reach.World, uint64, error) {
	return func() (reach.World, uint64, error) { return c.World(), 1, nil }
}

// showPossible has a page show what policy allows.
func showPossible(
	ctx context.Context, group *errgroup.Group, world func() (reach.World, uint64, error),
) func() traffic.Possible {
	p := newPossible(world)
	group.Go(func() error { p.run(ctx); return nil })
	return p.now
}

// manifests shows flow logs.
func (o *uiOptions) manifests(
	ctx context.Context, group *errgroup.Group, cmd *cobra.Command, hub *flowstream.Hub,
) (page.Config, error) {
	c, err := o.cluster.Load(ctx, userAgent(), cmd.ErrOrStderr())
	if err != nil {
		return page.Config{}, err
	}
	var denials traffic.Denials
	var sources []flowread.Source
	for _, name := range o.files {
		r, err := flowread.OpenTail(ctx, name, true)
		if err != nil {
			return page.Config{}, err
		}
		sources = append(sources, flowread.Source{Name: name, Reader: r})
	}
	group.Go(func() error {
		_, err := flowread.Follow(sources, flowread.Filter{}, &publisher{hub, &denials}, 0, func() {})
		return err
	})
	return page.Config{
		Title: strings.Join(o.cluster.Manifests, ", "), Flows: hub,
		Traffic:  func(context.Context) traffic.Graph { return denials.Graph() },
		Agents:   func(context.Context) []page.Agent { return nil },
		Explain:  explain.HandlerOf(func(context.Context) (explain.Cluster, error) { return c.Asked(), nil }),
		Possible: showPossible(ctx, group, fixed(c)),
	}, nil
}

// publisher hands records of flow logs to the page.
type publisher struct {
	hub     *flowstream.Hub
	denials *traffic.Denials
}

// Record implements flowread.Sink.
func (p *publisher) Record(line []byte, r *flowread.Record) error {
	p.hub.Publish(append(line, '\n'))
	p.denials.Record(r)
	return nil
}

func (o *uiOptions) serve(ctx context.Context, cmd *cobra.Command, cfg page.Config) error {
	mux := http.NewServeMux()
	for path, h := range page.Handlers(cfg) {
		if !o.expose {
			h = page.Private(h)
		}
		mux.Handle("GET "+path, h)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return fmt.Errorf("serve the page: %w; choose another address with --listen", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() && !o.expose {
		l.Close()
		return errUsage{fmt.Errorf("%s is no loopback address: whoever reaches it could read names of pods and policies; "+
			"give --expose if that is wanted", o.listen)}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "http://%s\n", l.Addr())
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("serve the page: %w", err)
	}
	return nil
}
