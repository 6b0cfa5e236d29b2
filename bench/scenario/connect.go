package scenario

import (
	"context"
	"fmt"

	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/report"
	"github.com/firstpacket/firstpacket/bench/world"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// Names of contenders.
const (
	nothing  = "no firewall"
	static   = "static nft rules"
	raw      = "NFQUEUE, raw blocking loop"
	callback = "NFQUEUE, go-nfqueue callback loop"
)

func agentName(policies int) string  { return fmt.Sprintf("firstpacket, %d policies", policies) }
func chainsName(policies int) string { return fmt.Sprintf("a chain for each of %d policies", policies) }

// crowd is the number of pods around the stage where that is not what is varied.
const crowd = 100

// maxCached is how many connections of one tuple a round has at most: about half of the client's ports.
const maxCached = 30000

// connections/s is the unit of rates.
const connectionRate = "connections/s"

// cachedTuple is the one that the kernel knows.
func cachedTuple() load.Tuples {
	return load.Tuples{
		Sources: world.ClientAddrs()[:1], Targets: world.ServerAddrs()[:1], Port: load.TCPPort, Ports: 1,
	}
}

// allTuples are so many that none comes twice in a round.
func allTuples() load.Tuples {
	return load.Tuples{
		Sources: world.ClientAddrs(), Targets: world.ServerAddrs(), Port: load.TCPPort, Ports: load.TCPPorts,
	}
}

func (s *Suite) openStaticFor(proto uint8, t load.Tuples) (*contender, error) {
	var list []ruleset.Tuple
	for i := range t.Count() {
		source, target := t.At(i)
		list = append(list, ruleset.Tuple{Src: source, Dst: target.Addr(), Proto: proto, DstPort: target.Port()})
	}
	return s.keep(s.openStatic(static, list, false))
}

// cached makes connections of a tuple whose verdict the kernel has.
func (s *Suite) cached(c *contender, clients int) *entry {
	return &entry{contender: c, warm: 1, job: load.Job{
		Kind: load.Connect, Clients: clients, Tuples: cachedTuple(), Want: load.Accepted,
		Duration: s.turn(), Limit: maxCached,
	}}
}

// uncached makes connections of which each is of a new tuple.
func (s *Suite) uncached(c *contender, clients int) *entry {
	t := allTuples()
	e := &entry{contender: c, fresh: true, job: load.Job{
		Kind: load.Connect, Clients: clients, Tuples: t, Want: load.Accepted,
		Duration: s.askingTurn(), Limit: t.Count()/2 - 1, // the first of all is not new
	}}
	if c.queued != nil {
		e.asks = 1
	}
	return e
}

const checkedConnections = "The server took exactly the connections that the client had; the table's counters say " +
	"that userspace was asked once for each new tuple, and never for a cached one."

func (s *Suite) connects(ctx context.Context) error {
	few, many := 1, pick(s, 1000, 1000, 10)
	free, err := s.keep(s.open(nothing))
	if err != nil {
		return err
	}
	plain, err := s.openStaticFor(packet.ProtoTCP, cachedTuple())
	if err != nil {
		return err
	}
	loop, err := s.keep(s.openLoop(raw, RoleRaw))
	if err != nil {
		return err
	}
	ours, err := s.keep(s.openAgent(ctx, agentName(few), world.World{Pods: crowd, StagePolicies: few}))
	if err != nil {
		return err
	}
	loaded, err := s.keep(s.openAgent(ctx, agentName(many), world.World{Pods: crowd, StagePolicies: many}))
	if err != nil {
		return err
	}
	var also []*contender
	if !s.cfg.Quick {
		c, err := s.keep(s.openLoop(callback, RoleCallback))
		if err != nil {
			return err
		}
		also = append(also, free, c)
	}
	for _, clients := range []int{1, 8} {
		if err := s.connectsOf(ctx, clients, free, plain, loop, ours, loaded, also); err != nil {
			return err
		}
	}
	return s.agentLatency(ctx, ours)
}

func (s *Suite) connectsOf(
	ctx context.Context, clients int, free, plain, loop, ours, loaded *contender, also []*contender,
) error {
	suffix, title := "", "one client"
	target := 1.25
	// A rate of one client varies more than that of many.
	knowing, asking := pick(s, pace{16, 20}, pace{4, 24}, pace{1, 2}), pick(s, pace{20, 1}, pace{12, 1}, pace{1, 1})
	if clients > 1 {
		suffix, title, target = fmt.Sprintf("_%d_clients", clients), fmt.Sprintf("%d clients", clients), 1
		knowing, asking = pick(s, pace{16, 15}, pace{2, 16}, pace{1, 2}), pick(s, pace{20, 1}, pace{6, 1}, pace{1, 1})
	}
	p, o := s.cached(plain, clients), s.cached(ours, clients)
	entries, others := []*entry{p, o}, []*entry(nil)
	if !s.cfg.Quick { // the ceiling of the load generator itself
		others = append(others, s.cached(free, clients))
	}
	if err := s.compare(ctx, knowing, append(entries, others...)...); err != nil {
		return err
	}
	r := against("cached_tcp"+suffix, "new connections of a cached tuple, "+title, connectionRate, o, p, others...)
	r.Checked = checkedConnections
	s.add(r, 0.95, false)

	l, o, m := s.uncached(loop, clients), s.uncached(ours, clients), s.uncached(loaded, clients)
	entries, others = []*entry{l, o, m}, nil
	for _, c := range also {
		e := s.uncached(c, clients)
		entries, others = append(entries, e), append(others, e)
	}
	if err := s.compare(ctx, asking, entries...); err != nil {
		return err
	}
	r = against("uncached_tcp"+suffix, "new connections, each of a new tuple, "+title, connectionRate, o, l, others...)
	r.Checked = checkedConnections
	s.add(r, target, false)
	r = against("uncached_tcp_1000_policies"+suffix, "the same with 1,000 policies that select the server, "+title,
		connectionRate, m, l)
	r.Checked = checkedConnections
	s.add(r, target, false)
	return nil
}

// agentLatency reads what the agent says of its own time: from the receipt of a packet until its verdict is sent.
func (s *Suite) agentLatency(ctx context.Context, c *contender) error {
	m, err := c.agent.Metrics(ctx)
	if err != nil {
		return err
	}
	const histogram, micro = "firstpacket_verdict_seconds", 1e6
	s.add(report.Result{
		Name: "agent_verdict_us_p99", Title: "inside the agent, from receipt to verdict sent, 99th percentile",
		Unit: "us", Value: m.Quantile(histogram, 0.99) * micro, Baseline: m.Quantile(histogram, 0.5) * micro,
		Against: "its median", Ratio: m.Quantile(histogram, 0.99) / m.Quantile(histogram, 0.5),
	}, 0, false)
	return nil
}

// policies takes the rate of new tuples against the number of policies, beside a chain for each policy.
func (s *Suite) policies(ctx context.Context) error {
	for _, n := range pick(s, []int{1, 100, 1000, 10_000}, nil, []int{2}) {
		if err := s.policiesOf(ctx, n); err != nil {
			return err
		}
		if err := s.closeAll(); err != nil {
			return err
		}
	}
	return nil
}

// maxChains is where the baseline ends: beyond, its rate is known to be nothing.
const maxChains = 1000

func (s *Suite) policiesOf(ctx context.Context, n int) error {
	loop, err := s.keep(s.openLoop(raw, RoleRaw))
	if err != nil {
		return err
	}
	ours, err := s.keep(s.openAgent(ctx, agentName(n), world.World{Pods: crowd, StagePolicies: n}))
	if err != nil {
		return err
	}
	l, o := s.uncached(loop, 1), s.uncached(ours, 1)
	entries, others := []*entry{l, o}, []*entry(nil)
	if n <= maxChains {
		chains, err := s.keep(s.openChains(n))
		if err != nil {
			return err
		}
		others = append(others, s.uncached(chains, 1))
	}
	speed := pick(s, pace{12, 1}, pace{3, 1}, pace{1, 1})
	if err := s.compare(ctx, speed, append(entries, others...)...); err != nil {
		return err
	}
	known := s.cached(ours, 1)
	if err := s.compare(ctx, speed, known); err != nil {
		return err
	}
	r := against(fmt.Sprintf("uncached_tcp_by_policies_%d", n), fmt.Sprintf("each of a new tuple, %d policies", n),
		connectionRate, o, l, others...)
	r.Checked = checkedConnections
	s.add(r, 1.25, false)
	s.point("firstpacket, new tuple", n, o)
	s.point("firstpacket, cached tuple", n, known)
	s.point(raw+" (accepts everything)", n, l)
	for _, e := range others {
		s.point("a chain for each policy", n, e)
	}
	return nil
}

// point adds to the plot of rates against policies.
func (s *Suite) point(label string, policies int, e *entry) {
	_, median, _ := quartiles(e.rates)
	const plot = "New connections a second by number of policies"
	s.pointAt(plot, label, "policies", connectionRate, float64(policies), median)
}

func (s *Suite) pointAt(plot, label, x, y string, at, value float64) {
	for i := range s.report.Curves {
		if c := &s.report.Curves[i]; c.Plot == plot && c.Label == label {
			c.X, c.Y = append(c.X, at), append(c.Y, value)
			return
		}
	}
	s.report.Curves = append(s.report.Curves, report.Curve{
		Plot: plot, Label: label, XName: x, YName: y, X: []float64{at}, Y: []float64{value},
	})
}
