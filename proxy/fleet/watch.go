package fleet

import (
	"bufio"
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/page"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

const (
	// findInterval lies between two looks at which agents there are.
	findInterval = 10 * time.Second
	// askPatience bounds one question to one agent.
	askPatience = 5 * time.Second
)

// Watch follows a set of agents that may change: nodes come and go, and an update replaces the agents of all of them.
type Watch struct {
	// Find lists the agents, which are the watch's to close. It is called again and again.
	Find func(ctx context.Context) ([]*Agent, error)
	// Publish receives the denied flows of all agents, lines with their ends, which are valid during the call only. It is
	// called by several goroutines.
	Publish func(line []byte)
	// Report, if set, is told when an agent cannot be reached, and with nil when it can again or is a new one; without
	// an agent, when the agents cannot be listed any more. It is called by several goroutines.
	Report func(a *Agent, err error)

	interval time.Duration // between looks; zero is findInterval

	mu      sync.Mutex
	members map[string]*member
	err     error
}

type member struct {
	agent *Agent
	stop  context.CancelFunc
}

// Run follows the agents until the context ends.
func (w *Watch) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(cmp.Or(w.interval, findInterval))
	defer tick.Stop()
	for {
		agents, err := w.Find(ctx)
		w.take(ctx, &running, agents, err)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// take follows those that are new and leaves those that are gone. When they cannot be listed all stay.
func (w *Watch) take(ctx context.Context, running *sync.WaitGroup, agents []*Agent, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.err == nil && ctx.Err() == nil {
		w.report(nil, err)
	}
	w.err = err
	if err != nil {
		return
	}
	first := w.members == nil
	if first {
		w.members = map[string]*member{}
	}
	there := map[string]bool{}
	for _, a := range agents {
		key := a.Name + " " + a.Pod
		there[key] = true
		if w.members[key] != nil {
			a.Close()
			continue
		}
		if !first {
			w.report(a, nil)
		}
		own, stop := context.WithCancel(ctx)
		w.members[key] = &member{agent: a, stop: stop}
		running.Go(func() {
			defer a.Close()
			w.follow(own, a)
		})
	}
	for key, m := range w.members {
		if !there[key] {
			m.stop()
			delete(w.members, key)
		}
	}
}

func (w *Watch) report(a *Agent, err error) {
	if w.Report != nil {
		w.Report(a, err)
	}
}

// follow publishes one agent's denied flows.
func (w *Watch) follow(ctx context.Context, a *Agent) {
	lines := bufio.NewScanner(a.Follow(ctx, func(err error) { w.report(a, err) }))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		w.Publish(append(lines.Bytes(), '\n'))
	}
}

func (w *Watch) list() ([]*Agent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*Agent
	for _, m := range w.members {
		list = append(list, m.agent)
	}
	slices.SortFunc(list, func(a, b *Agent) int { return strings.Compare(a.Name, b.Name) })
	return list, w.err
}

// each asks all agents at once.
func each[T any](ctx context.Context, agents []*Agent, ask func(context.Context, *Agent) T) []T {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	answers := make([]T, len(agents))
	var asked sync.WaitGroup
	for i, a := range agents {
		asked.Go(func() { answers[i] = ask(ctx, a) })
	}
	asked.Wait()
	return answers
}

// Agents tells how they are; those that cannot be asked are not ready.
func (w *Watch) Agents(ctx context.Context) []page.Agent {
	agents, err := w.list()
	all := each(ctx, agents, func(ctx context.Context, a *Agent) page.Agent {
		var s agent.Status
		if err := a.JSON(ctx, "/status", &s); err != nil {
			return page.Agent{Node: a.Name, NotReady: "cannot be asked: " + err.Error()}
		}
		return page.Agent{
			Node: s.Node, Version: s.Version, NotReady: s.NotReady, Generation: s.Generation, Policies: s.Policies,
			Problems: s.Problems,
		}
	})
	if err != nil {
		all = append(all, page.Agent{Node: "all agents", NotReady: "cannot be listed: " + err.Error()})
	}
	return all
}

// Traffic sums up what the agents saw. One that cannot be asked is missing; Agents says so.
func (w *Watch) Traffic(ctx context.Context) traffic.Graph {
	agents, _ := w.list()
	var sum traffic.Sum
	for _, g := range each(ctx, agents, func(ctx context.Context, a *Agent) (g traffic.Graph) {
		if a.JSON(ctx, traffic.Path, &g) != nil {
			return traffic.Graph{}
		}
		return g
	}) {
		sum.Add(g)
	}
	return sum.Graph()
}
