package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/firstpacket/firstpacket/bench/load"
	"github.com/firstpacket/firstpacket/bench/world"
	"github.com/firstpacket/firstpacket/classify/packet"
)

// throughput sends as much as goes over flows that are established.
func (s *Suite) throughput(ctx context.Context) error {
	free, err := s.keep(s.open(nothing))
	if err != nil {
		return err
	}
	ours, err := s.keep(s.openAgent(ctx, agentName(1), world.World{Pods: crowd, StagePolicies: 1}))
	if err != nil {
		return err
	}
	// Connection tracking has its price, whatever the rules for established flows are.
	var plain *contender
	if !s.cfg.Quick {
		if plain, err = s.openStaticFor(packet.ProtoTCP, sinks()); err != nil {
			return err
		}
	}
	steady, speed := pick(s, pace{6, 60}, pace{3, 32}, pace{1, 2}), pick(s, pace{8, 4}, pace{4, 5}, pace{1, 2})
	for _, flows := range pick(s, []int{1, 8}, []int{1}, []int{2}) {
		const unit, checked = "bytes/s", "The server read as many bytes as the client sent."
		name, title := "established_throughput"+several(flows), fmt.Sprintf("%d established TCP flows", flows)
		f, o := s.stream(free, flows), s.stream(ours, flows)
		entries := []*entry{f, o}
		if plain != nil {
			entries = append(entries, s.stream(plain, flows))
		}
		if err := s.compare(ctx, steady, entries...); err != nil {
			return err
		}
		r := against(name, title, unit, o, f)
		r.Checked = checked
		s.add(r, 0.98, false)
		if plain == nil {
			break
		}
		r = against(name+"_static", title+", beside static rules", unit, o, entries[2])
		r.Checked = checked
		s.add(r, 0, false)
		f, o = s.packets(free, flows), s.packets(ours, flows)
		if err := s.compare(ctx, speed, f, o); err != nil {
			return err
		}
		r = against("established_packets"+several(flows), fmt.Sprintf("%d established UDP flows of small packets", flows),
			"packets/s", o, f)
		r.Checked = "As many packets came to the server's interface as the client sent."
		s.add(r, 0, false)
	}
	return nil
}

func several(flows int) string {
	if flows == 1 {
		return ""
	}
	return fmt.Sprintf("_%d_flows", flows)
}

func (s *Suite) stream(c *contender, flows int) *entry {
	e := &entry{contender: c, rate: func(r *load.Result) float64 { return float64(r.Bytes) / r.Elapsed.Seconds() }}
	e.job = load.Job{Kind: load.Stream, Clients: flows, Duration: s.lasting(20, 20), Tuples: sinks()}
	e.before = func() error { // connect, and let the windows grow
		warm := e.job
		warm.Duration = s.lasting(200, 100)
		_, err := c.load.Do(warm)
		return err
	}
	e.after = func(r *load.Result) error {
		if _, err := c.load.Do(load.Job{Kind: load.HangUp, Clients: flows}); err != nil {
			return err
		}
		served, err := c.serve.Do(load.Job{Kind: load.Count})
		if err != nil {
			return err
		}
		if served.Bytes != r.Bytes || r.Bytes == 0 {
			return fmt.Errorf("%w: %d bytes sent, %d received", errUnbelievable, r.Bytes, served.Bytes)
		}
		return nil
	}
	return e
}

// sinks are where streams go.
func sinks() load.Tuples {
	return load.Tuples{Sources: world.ClientAddrs()[:1], Targets: world.ServerAddrs(), Port: load.SinkPort, Ports: 1}
}

func (s *Suite) packets(c *contender, flows int) *entry {
	e := &entry{contender: c, rate: func(r *load.Result) float64 { return float64(r.Packets) / r.Elapsed.Seconds() }}
	e.job = load.Job{Kind: load.Packets, Clients: flows, Duration: s.lasting(200, 100), Tuples: load.Tuples{
		Sources: world.ClientAddrs()[:1], Targets: world.ServerAddrs(), Port: load.DropPort, Ports: 1,
	}}
	var start uint64
	e.before = func() (err error) {
		start, err = c.received()
		return err
	}
	e.after = func(r *load.Result) error {
		now, err := c.received()
		if err != nil {
			return err
		}
		// Neighbour discovery and the like come on top.
		if got := now - start; got < r.Packets || got > r.Packets+100 {
			return fmt.Errorf("%w: %d packets sent, %d received", errUnbelievable, r.Packets, got)
		}
		return nil
	}
	return e
}

// udp makes requests and waits for the answers: single ones of new flows, and two at once as resolvers do.
func (s *Suite) udp(ctx context.Context) error {
	free, err := s.keep(s.open(nothing))
	if err != nil {
		return err
	}
	loop, err := s.keep(s.openLoop(raw, RoleRaw))
	if err != nil {
		return err
	}
	plain, err := s.openStaticFor(packet.ProtoUDP, udpCached())
	if err != nil {
		return err
	}
	ours, err := s.keep(s.openAgent(ctx, agentName(1), world.World{Pods: crowd, StagePolicies: 1}))
	if err != nil {
		return err
	}
	const unit = "requests/s"
	asking, speed := pick(s, pace{15, 1}, pace{5, 1}, pace{1, 1}), pick(s, pace{8, 4}, pace{2, 3}, pace{1, 2})
	for _, parallel := range []int{1, 2} {
		name, title := "udp", "UDP requests and answers"
		if parallel > 1 {
			name, title = "dns_burst", "two UDP requests at once from one socket, as resolvers send them"
		}
		f, l, o := s.request(free, parallel), s.request(loop, parallel), s.request(ours, parallel)
		if err := s.compare(ctx, asking, l, o, f); err != nil {
			return err
		}
		r := against("uncached_"+name, title+", each of a new tuple", unit, o, l, f)
		r.Checked = "The server answered exactly the requests that the client had answers to; userspace was asked for each."
		s.add(r, 0, false)
		p, o := s.request(plain, parallel), s.request(ours, parallel)
		for _, e := range []*entry{p, o} {
			e.job.Tuples, e.job.Duration, e.job.Limit, e.asks, e.warm = udpCached(), s.askingTurn(), maxCached, 0, 1
		}
		if err := s.compare(ctx, speed, p, o); err != nil {
			return err
		}
		r = against("cached_"+name, title+", of a cached tuple", unit, o, p)
		r.Checked = "The server answered exactly the requests that the client had answers to; userspace was never asked."
		s.add(r, 0.95, false)
	}
	return nil
}

func udpCached() load.Tuples {
	return load.Tuples{
		Sources: world.ClientAddrs()[:1], Targets: world.ServerAddrs()[:1], Port: load.UDPPort, Ports: 1,
	}
}

func (s *Suite) request(c *contender, parallel int) *entry {
	t := load.Tuples{Sources: world.ClientAddrs(), Targets: world.ServerAddrs(), Port: load.UDPPort, Ports: load.UDPPorts}
	e := &entry{contender: c, job: load.Job{
		Kind: load.Request, Parallel: parallel, Tuples: t, Want: load.Accepted,
		Duration: s.askingTurn(), Limit: t.Count(),
	}}
	if c.queued != nil {
		e.asks = 1
	}
	return e
}

// denied makes connections that are refused by a reset, and by silence.
func (s *Suite) denied(ctx context.Context) error {
	plain, err := s.keep(s.openStatic(static, nil, true))
	if err != nil {
		return err
	}
	w := world.World{Pods: crowd, StagePolicies: 1}
	ours, err := s.keep(s.openAgent(ctx, agentName(1), w, "--deny-with", "reject"))
	if err != nil {
		return err
	}
	asking, speed := pick(s, pace{11, 1}, pace{5, 1}, pace{1, 1}), pick(s, pace{8, 16}, pace{3, 10}, pace{1, 2})
	p, fresh := s.refusal(plain, false), s.refusal(ours, false)
	if err := s.compare(ctx, asking, p, fresh); err != nil {
		return err
	}
	const checked = "Every connection was refused, and none reached the server; " +
		"userspace was asked once for each new tuple."
	r := against("denied_reject_uncached", "refused by a reset, each of a new tuple", connectionRate, fresh, p)
	r.Checked = checked
	s.add(r, 0, false)
	p, again := s.refusal(plain, true), s.refusal(ours, true)
	if err := s.compare(ctx, speed, p, again); err != nil {
		return err
	}
	r = against("denied_reject_cached", "refused by a reset, of a tuple that was refused a moment ago", connectionRate,
		again, p)
	r.Checked = checked
	s.add(r, 0, false)

	silent, err := s.keep(s.openStatic(static, nil, false))
	if err != nil {
		return err
	}
	quiet, err := s.keep(s.openAgent(ctx, agentName(1), w))
	if err != nil {
		return err
	}
	p, o := s.fire(silent), s.fire(quiet)
	if err := s.compare(ctx, speed, p, o); err != nil {
		return err
	}
	r = against("denied_drop", "SYNs dropped, of a tuple that was refused a moment ago", "SYNs/s", o, p)
	r.Checked = "No connection reached the server; the table refused every SYN."
	s.add(r, 0, false)
	return nil
}

func (s *Suite) refusal(c *contender, cached bool) *entry {
	t := load.Tuples{Targets: world.ServerAddrs(), Port: load.TCPPort, Ports: load.TCPPorts}
	e := &entry{contender: c, worker: c.noise}
	e.job = load.Job{
		Kind: load.Connect, Want: load.Refused, Duration: s.askingTurn(),
		Limit: t.Count(), Tuples: t,
	}
	switch {
	case cached:
		e.warm, e.job.Tuples.Targets, e.job.Tuples.Ports = 1, t.Targets[:1], 1
		e.job.Duration, e.job.Limit = s.turn(), maxCached
	case c.queued != nil:
		e.asks = 1
	}
	return e
}

// fire sends SYNs of a denied tuple without waiting for anything.
func (s *Suite) fire(c *contender) *entry {
	e := &entry{contender: c, worker: c.noise, warm: 1}
	e.job = load.Job{
		Kind: load.Fire, Duration: s.turn(), Limit: 20000,
		Tuples: load.Tuples{Targets: world.ServerAddrs()[:1], Port: load.TCPPort, Ports: 1},
	}
	var refused uint64
	e.before = func() error {
		if c.agent == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond) // until the first one is judged and known
		n, err := c.agent.rules.Counters()
		refused = n.Refused
		return err
	}
	e.after = func(r *load.Result) error {
		served, err := c.serve.Do(load.Job{Kind: load.Count})
		if err != nil {
			return err
		}
		if served.Accepted > 0 || r.Begun == 0 {
			return fmt.Errorf("%w: of %d denied SYNs, %d reached the server", errUnbelievable, r.Begun, served.Accepted)
		}
		if c.agent == nil {
			return nil
		}
		n, err := c.agent.rules.Counters()
		if err != nil {
			return err
		}
		if got := n.Refused - refused; got != uint64(r.Begun) {
			return fmt.Errorf("%w: %d SYNs sent, %d refused", errUnbelievable, r.Begun, got)
		}
		return nil
	}
	return e
}

// fairness takes the latency of one pod's new tuples while another pod opens connections to ports at random; and the
// same where static rules drop the flood, which tells what the sending of it costs the machine.
func (s *Suite) fairness(ctx context.Context) error {
	ours, err := s.keep(s.openAgent(ctx, agentName(1), world.World{Pods: crowd, StagePolicies: 1}))
	if err != nil {
		return err
	}
	plain, err := s.openStaticFor(packet.ProtoTCP, cachedTuple())
	if err != nil {
		return err
	}
	var flooded float64
	alone, beside := s.paced(s.uncached(ours.as("alone"), 1), nil),
		s.paced(s.uncached(ours.as("beside a flood"), 1), &flooded)
	ruled, besideRuled := s.paced(s.cached(plain.as("static rules, alone"), 1), nil),
		s.paced(s.cached(plain.as("static rules, beside a flood"), 1), &flooded)
	if err := s.compare(ctx, pick(s, pace{7, 1}, pace{3, 1}, pace{1, 1}), alone, beside, ruled, besideRuled); err != nil {
		return err
	}
	r := against("fairness", "99th percentile of new tuples' connect time beside a pod that floods", "us", beside, alone,
		ruled, besideRuled)
	_, floor, _ := ratio(besideRuled, ruled)
	r.Checked = fmt.Sprintf("The flood was %.0f SYNs/s to ports at random, none of which was let through. Where static "+
		"rules drop it at once, it makes the 99th percentile %.2f times as long.", flooded, floor)
	s.add(r, 2, true)
	return nil
}

const (
	// floodRate is what the noisy pod sends, in SYNs a second.
	floodRate = 50_000
	// floodLead is how long the flood has gone on when the first connection is opened.
	floodLead = 200 * time.Millisecond
)

// paced has an entry make few enough connections to take their latency, not the rate: beside a flood, whose rate it
// leaves, unless that is nil.
func (s *Suite) paced(e *entry, flooded *float64) *entry {
	e.job.Rate = 2000
	e.job.Duration = s.lasting(1000, 300)
	e.rate = func(r *load.Result) float64 { return float64(r.Latency.Quantile(0.99)) / float64(time.Microsecond) }
	done := make(chan error, 1)
	if flooded != nil {
		flood := load.Job{
			Kind: load.Flood, Rate: floodRate, Duration: e.job.Duration + floodLead + 100*time.Millisecond,
			Tuples: load.Tuples{Sources: []netip.Addr{world.NoisyAddr()}, Targets: world.ServerAddrs()},
		}
		e.before = func() error {
			go func() {
				r, err := e.noise.Do(flood)
				*flooded = r.Rate()
				done <- err
			}()
			time.Sleep(floodLead)
			return nil
		}
	}
	e.after = func(r *load.Result) error {
		if flooded != nil {
			if err := <-done; err != nil {
				return err
			}
		}
		if r.Accepted+r.TimedOut != r.Begun || r.Begun == 0 {
			return fmt.Errorf("%w: of %d connections, %d were accepted", errUnbelievable, r.Begun, r.Accepted)
		}
		return nil
	}
	return e
}
