package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

const (
	// inspectInterval is how often the table is compared with what it should be when nobody is seen changing it.
	inspectInterval = 30 * time.Second
	// inspectPause gathers changes that come one after another.
	inspectPause = 100 * time.Millisecond
	// fullInterval is how often it is looked whether the verdict cache was full.
	fullInterval = 5 * time.Second
)

// guard keeps the table as it should be: it hears of every change that is made to it, by this agent or by others, and
// looks. It ends with ErrSuperseded when another agent has taken the table over.
func (a *agent) guard(ctx context.Context) error {
	w, err := ruleset.Watch(0)
	if err != nil {
		return err
	}
	s := sightings{changed: make(chan struct{}, 1)}
	rouse := func() {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return w.Run(func() { s.seen.Add(1); rouse() }, func() { a.controller.overruns.Add(1); rouse() })
	})
	group.Go(func() error {
		defer w.Close()
		return a.inspect(ctx, &s)
	})
	return group.Wait()
}

// sightings are the changes to the table that were heard of: seen counts all that there were.
type sightings struct {
	changed chan struct{}
	seen    atomic.Uint64
}

// inspect looks at the table now and then, after changes of others, and when the kernel lost what it had to tell.
func (a *agent) inspect(ctx context.Context, s *sightings) error {
	// Transactions of this agent are heard of like all others.
	others := func() uint64 { return s.seen.Load() - a.controller.rules.Commits() }
	last, lost := others(), a.controller.overruns.Load()
	tick, full := time.NewTicker(inspectInterval), time.NewTicker(fullInterval)
	defer tick.Stop()
	defer full.Stop()
	var unlearnt uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-full.C:
			unlearnt = a.tellOfFullCache(unlearnt)
			continue
		case <-s.changed:
			// Soon, so that a stranger's change does not last; rarely, as most changes are our own.
			if err := a.controller.checkOwner(); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(inspectPause):
			}
			now, overruns := others(), a.controller.overruns.Load()
			if now == last && overruns == lost {
				continue
			}
			if overruns != lost {
				a.cfg.Log.Warn().Msg("notifications of changes to the ruleset were lost; looking at all of it")
			}
			last, lost = now, overruns
		}
		if err := a.controller.checkTable(); err != nil {
			return err
		}
	}
}

// tellOfFullCache logs that verdicts found the cache full since the last call, which returned the count of then.
func (a *agent) tellOfFullCache(last uint64) uint64 {
	n, err := a.controller.rules.Counters()
	if err != nil {
		return last // no table, which is repaired as soon as it is noticed
	}
	if n.Unlearnt > last {
		a.cfg.Log.Warn().Uint64("verdicts", n.Unlearnt-last).Int("cache-size", a.cfg.cacheSize()).
			Msg("the kernel's verdict cache was full: what it could not learn is asked for again")
	}
	return n.Unlearnt
}

// checkOwner returns ErrSuperseded when another agent has the table, and nil when that cannot be told.
func (c *controller) checkOwner() error {
	if owner, err := c.rules.Owner(); err == nil && owner != 0 && owner != c.owner {
		return fmt.Errorf("look at the ruleset: %w", ruleset.ErrSuperseded)
	}
	return nil
}

// checkTable repairs the table if it is not as it should be. Its error is ErrSuperseded or nil: what cannot be looked
// at or repaired now is so later.
func (c *controller) checkTable() error {
	c.turn.Lock()
	defer c.turn.Unlock()
	if err := c.checkOwner(); err != nil {
		return err
	}
	drift, err := c.rules.Check(c.want())
	if err != nil {
		c.log.Warn().Err(err).Msg("cannot look at the ruleset")
		return nil
	}
	if len(drift) > 0 {
		const enough = 3
		what := fmt.Sprint(drift[:min(len(drift), enough)])
		if more := len(drift) - enough; more > 0 {
			what += fmt.Sprintf(" and %d more", more)
		}
		if err := c.repair(what); err != nil {
			if errors.Is(err, ruleset.ErrSuperseded) {
				return err
			}
			c.log.Error().Err(err).Str("changed", what).Msg("cannot repair the ruleset; trying again")
		}
		return nil
	}
	return c.checkCache()
}

// repair writes the table anew, for a reason that is logged. The caller has the turn. Its error is ErrSuperseded, or
// why the table cannot be repaired.
func (c *controller) repair(why string) error {
	if err := c.rules.Repair(c.want()); err != nil {
		return err
	}
	c.repairs.Add(1)
	c.log.Error().Str("changed", why).Msg("somebody changed table inet firstpacket; it is repaired")
	c.publisher.committed.Store(c.generation)
	c.wake()
	// Flows may have passed unjudged meanwhile, and the cache may hold what nobody judged.
	c.settler.settle(settlement{
		snapshot: c.publisher.current.Load().snapshot, generation: c.generation, all: true, adopt: true,
	})
	return nil
}

// checkCache looks for tuples that somebody else had the kernel learn.
func (c *controller) checkCache() error {
	held, err := c.rules.Allowed()
	if err != nil {
		return nil //nolint:nilerr // the table has just changed again, and with it comes the next look
	}
	if !c.learned.knows(held) {
		c.settler.settle(settlement{
			snapshot: c.publisher.current.Load().snapshot, generation: c.generation, all: true, adopt: true,
		})
	}
	return nil
}
