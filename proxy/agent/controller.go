package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/metrics"
	"github.com/firstpacket/firstpacket/proxy/report"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/told"
)

// controller carries changes of the cluster to the packet path: it makes the snapshot, publishes it to the queue
// threads and brings the kernel's table in line.
type controller struct {
	log       zerolog.Logger
	marks     mark.Layout
	state     *state.State
	publisher *publisher
	rules     *ruleset.Ruleset
	learned   *learned
	settler   *settler
	wake      func() // the queue's: held packets are judged again

	owner     uint32
	bank      int // of generations; see nextGeneration
	evaluator *engine.Evaluator

	prewarmer prewarmer
	reporter  atomic.Pointer[report.Writer] // nil where it is not wanted
	names     *names
	// dnsServers are the configured ones.
	dnsServers []netip.AddrPort
	told       told.Clock

	// turn belongs to who changes the table, with the fields below it.
	turn       sync.Mutex
	generation uint32
	subjects   map[netip.Addr]ruleset.Subject
	servers    []ruleset.Resolver
	repairs    atomic.Uint64
	overruns   atomic.Uint64 // times that notifications of changes to the table were lost
	// changes is how long changes take until new flows obey.
	changes metrics.Latency

	mu      sync.Mutex
	applied applied
}

// applied is what the kernel enforces.
type applied struct {
	// Versions are the resource versions, by kind, that new flows are judged by.
	Versions map[string]string
	// Snapshot and Generation are the engine's and the kernel's number of it.
	Snapshot   *engine.Snapshot
	Generation uint32
	At         time.Time
	// PodCIDRs are the ranges of this node's pods. The slice is shared and must not be changed.
	PodCIDRs []netip.Prefix
	// Names is how many addresses each pod has learned under names, by namespace/name.
	Names map[string]int
	// Policies, the Census of these, and Problems describe the policies in it.
	Policies int
	Census   state.Census
	Problems map[string][]string
	// Addresses is how many have an owner: a pod or a node.
	Addresses int
	// Err is the last transaction's failure; nil once one succeeded.
	Err error
}

func (c *controller) status() applied {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applied
}

// Retries of a transaction that the kernel refused. New verdicts are not committed meanwhile: packets of isolated pods
// wait in the queue.
const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// prepare makes the first state what queue threads judge by. They hold their packets until it is in force.
func (c *controller) prepare(b source.Batch) error {
	_, delta := c.state.Apply(b.Changes)
	if err := c.state.CheckNode(); err != nil {
		return fmt.Errorf("check --node-name: %w", err)
	}
	c.recall()
	snapshot, recalled := c.state.Lapse(time.Now())
	c.subjects = map[netip.Addr]ruleset.Subject{}
	for _, d := range []*engine.Delta{delta, recalled} {
		if d == nil {
			continue
		}
		for _, s := range d.Subjects {
			c.subjects[s.Addr] = kernelSubject(s)
		}
	}
	last, err := c.rules.Generation()
	if err != nil && !errors.Is(err, ruleset.ErrNotInstalled) {
		return err
	}
	c.generation = nextGeneration(last, c.bank, c.marks.Generations())
	c.prewarmer.update(snapshot, nil)
	c.setResolvers()
	c.publisher.current.Store(&view{snapshot, c.generation})
	return nil
}

// install brings the first state into force: the table is made, or an earlier agent's is adopted.
func (c *controller) install(ctx context.Context, b source.Batch) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	if err := c.rules.Install(c.want()); err != nil {
		return err
	}
	// The table diverts to this agent's queues by now, and takes its verdicts.
	c.publisher.committed.Store(c.generation)
	c.wake()
	// An earlier agent that was there until now may have heard more since prepare; from here on it writes nothing.
	c.recall()
	if snapshot, delta := c.state.Lapse(time.Now()); delta != nil {
		if err := c.enact(ctx, b.Versions, snapshot, delta); err != nil {
			return err
		}
	}
	snapshot := c.publisher.current.Load().snapshot
	update := ruleset.Update{Generation: c.generation, FlushDenied: true, Learn: c.prewarm(snapshot, everything{})}
	update.Told, update.Untold = c.takeTold()
	if err := c.rules.Apply(update); err != nil {
		return err
	}
	c.record(b.Versions, snapshot, nil)
	// What an earlier agent admitted, tuples and flows, is judged again.
	c.settler.settle(settlement{snapshot: snapshot, generation: c.generation, all: true, adopt: true})
	return nil
}

// want is the table as it should be.
func (c *controller) want() ruleset.State {
	return ruleset.State{
		Generation: c.generation, PodCIDRs: c.state.PodCIDRs(), Subjects: slices.Collect(maps.Values(c.subjects)),
		Resolvers: c.servers, Told: c.told.Of(c.state.Facts()),
	}
}

// run applies batches until the context ends or the source fails.
func (c *controller) run(ctx context.Context, q *source.Queue) error {
	for {
		b, err := q.Next(ctx)
		if errors.Is(err, source.ErrClosed) {
			// The queue ends with the agent's context, of which it may hear a little earlier than this goroutine.
			<-ctx.Done()
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // asked to stop
			}
			return err
		}
		if err := c.step(ctx, b); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // asked to stop
			}
			return err
		}
	}
}

// step brings one batch into force. When it returns, every new flow is judged by it.
func (c *controller) step(ctx context.Context, b source.Batch) error {
	began := time.Now()
	c.turn.Lock()
	defer c.turn.Unlock()
	snapshot, delta := c.state.Apply(b.Changes)
	if delta == nil {
		c.publishSame(snapshot)
		c.record(b.Versions, snapshot, nil)
		return nil
	}
	if err := c.enact(ctx, b.Versions, snapshot, delta); err != nil {
		return err
	}
	c.changes.Observe(time.Since(began))
	return nil
}

// enact brings a snapshot into force, which has the resource versions. The caller has the turn.
func (c *controller) enact(
	ctx context.Context, versions map[string]string, snapshot *engine.Snapshot, delta *engine.Delta,
) error {
	generation := nextGeneration(c.generation, c.bank, c.marks.Generations())
	if err := c.publisher.waitReusable(ctx, generation, c.marks.Generations()); err != nil {
		return err
	}
	c.generation = generation
	affected, named := addressSet(delta.Affected), addressSet(delta.Named)
	// A new range makes judged what was not, and tuples that only the kernel knows cannot be looked at.
	flush := delta.Ranges || c.learned.overflowed()
	if flush {
		c.learned.purge()
	}
	update := ruleset.Update{
		Generation:   generation,
		Forget:       c.learned.forget(either{affected, named}, c.allowedIn(snapshot)),
		FlushDenied:  true,
		FlushAllowed: flush,
		PodCIDRs:     c.state.PodCIDRs(),
		SetPodCIDRs:  delta.Ranges,
	}
	for _, s := range delta.Subjects {
		if !s.Present {
			delete(c.subjects, s.Addr)
			update.Removed = append(update.Removed, s.Addr)
			continue
		}
		c.subjects[s.Addr] = kernelSubject(s)
		update.Subjects = append(update.Subjects, c.subjects[s.Addr])
	}
	c.prewarmer.update(snapshot, delta.Affected)
	if c.setResolvers() {
		update.Resolvers, update.SetResolvers = c.servers, true
	}
	if flush {
		update.Learn = c.prewarm(snapshot, everything{})
	} else {
		update.Learn = c.prewarm(snapshot, affected)
	}
	update.Told, update.Untold = c.takeTold()
	// First the snapshot, then the transaction: a thread that already sees the new snapshot holds its packets until the
	// kernel knows the generation. The other order would admit by an old snapshot.
	c.publisher.current.Store(&view{snapshot, generation})
	if err := c.commit(ctx, update, versions, snapshot); err != nil {
		return err
	}
	c.publisher.committed.Store(generation)
	c.wake()
	c.record(versions, snapshot, nil)
	// Packets that had passed the verdict map when the transaction came may still add tuples that it removed.
	c.settler.settle(settlement{
		snapshot: snapshot, generation: generation, affected: affected, named: named, again: update.Forget, flush: flush,
	})
	c.log.Debug().Uint32("generation", generation).Int("affected", len(delta.Affected)).
		Int("named", len(delta.Named)).
		Int("forgotten", len(update.Forget)).Int("subjects", len(delta.Subjects)).Msg("applied")
	return nil
}

// prewarm returns tuples to be learnt, of which learned knows from now on. The caller has the turn.
func (c *controller) prewarm(s *engine.Snapshot, of affectedSet) []ruleset.Tuple {
	tuples := c.prewarmer.tuples(c.subjects, of, c.allowedIn(s))
	c.learned.adopt(tuples)
	return tuples
}

// rewarm has the kernel learn the tuples of prewarm again, after its cache was emptied by whomever.
func (c *controller) rewarm() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	tuples := c.prewarm(c.publisher.current.Load().snapshot, everything{})
	if len(tuples) == 0 {
		return nil
	}
	return c.rules.Apply(ruleset.Update{Generation: c.generation, Learn: tuples})
}

// publishSame hands threads a snapshot in which no verdict differs, so that the logs name owners as they are now.
func (c *controller) publishSame(s *engine.Snapshot) {
	if v := c.publisher.current.Load(); v.snapshot != s {
		c.publisher.current.Store(&view{s, v.generation})
	}
}

// commit applies the update, again and again if the kernel refuses: giving up would leave packets without verdicts, and
// going back would enforce what is no longer the policy.
func (c *controller) commit(
	ctx context.Context, u ruleset.Update, versions map[string]string, s *engine.Snapshot,
) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := c.rules.Apply(u)
		if errors.Is(err, ruleset.ErrNotInstalled) {
			err = c.repair(err.Error())
			if err == nil {
				err = c.rules.Apply(u)
			}
		}
		if err == nil || errors.Is(err, ruleset.ErrSuperseded) {
			return err
		}
		c.record(versions, s, fmt.Errorf("nftables transaction of generation %d: %w", u.Generation, err))
		c.log.Error().Err(err).Dur("retry", pause).Msg("the kernel refused an update; new flows wait until it is in force")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// record notes what is in force, or why it is not.
func (c *controller) record(versions map[string]string, s *engine.Snapshot, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied.Err = err
	if err != nil {
		return
	}
	all := c.state.Problems()
	problems := make(map[string][]string, len(all))
	for ref, list := range all {
		for _, p := range list {
			problems[ref.String()] = append(problems[ref.String()], p.String())
		}
	}
	c.logProblems(c.applied.Problems, problems)
	if w := c.reporter.Load(); w != nil {
		w.Changed()
	}
	c.applied = applied{
		Versions: versions, Snapshot: s, Generation: c.generation, At: time.Now(),
		Policies: len(c.state.Policies()), Census: c.state.Census(), Problems: problems, PodCIDRs: c.state.PodCIDRs(),
		Names: c.state.Names(), Addresses: c.state.Index.Counts().Addresses,
	}
}

// allowedIn judges tuples by a snapshot, the way their first packet would be.
func (c *controller) allowedIn(s *engine.Snapshot) func(ruleset.Tuple) bool {
	return func(t ruleset.Tuple) bool { return tupleAllowed(c.evaluator, s, t) }
}

func kernelSubject(s engine.Subject) ruleset.Subject {
	return ruleset.Subject{
		Addr: s.Addr, Pod: true, Ingress: s.Ingress, Egress: s.Egress, Names: s.Names,
		IngressAudit: s.IngressAudit, EgressAudit: s.EgressAudit,
	}
}

// affectedSet is a set of addresses.
type affectedSet interface{ contains(netip.Addr) bool }

// either is the union of two sets.
type either [2]addresses

func (e either) contains(a netip.Addr) bool { return e[0].contains(a) || e[1].contains(a) }

// everything is the set of all addresses.
type everything struct{}

func (everything) contains(netip.Addr) bool { return true }

// addresses is a set of some addresses.
type addresses map[netip.Addr]struct{}

func (a addresses) contains(addr netip.Addr) bool { _, ok := a[addr]; return ok }

func addressSet(list []netip.Addr) addresses {
	set := make(addresses, len(list))
	for _, a := range list {
		set[a] = struct{}{}
	}
	return set
}
