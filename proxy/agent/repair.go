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
)

// guard keeps the table as it should be: it hears of every change that is made to it, by this agent or by others, and
// looks. It ends with ErrSuperseded when another agent has taken the table over.
func (a *agent) guard(ctx context.Context) error {
	w, err := ruleset.Watch(0)
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	var seen atomic.Uint64
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return w.Run(func() {
			seen.Add(1)
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	group.Go(func() error {
		defer w.Close()
		return a.inspect(ctx, changed, &seen)
	})
	return group.Wait()
}

// inspect looks at the table now and then, and after changes of others: seen counts all that there were.
func (a *agent) inspect(ctx context.Context, changed <-chan struct{}, seen *atomic.Uint64) error {
	others := func() uint64 { return seen.Load() - a.controller.rules.Commits() }
	last := others()
	tick := time.NewTicker(inspectInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
			// Soon, so that a stranger's change does not last; rarely, as most changes are our own.
			if err := a.controller.checkOwner(); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(inspectPause):
			}
			now := others()
			if now == last {
				continue
			}
			last = now
		}
		if err := a.controller.checkTable(); err != nil {
			return err
		}
	}
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
