package agent

import (
	"context"
	"time"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/told"
)

// What pods were told by DNS is kept in the kernel's table, for the next agent: an answer goes on to its pod after the
// transaction that has it, so that there is no connection under a name of which the next agent would not know.

// recall reads what pods have told earlier agents. If it cannot be read, nothing is known: pods ask again.
func (c *controller) recall() {
	kept, err := c.rules.Told()
	if err != nil {
		c.log.Warn().Err(err).Msg("what pods were told by DNS is lost: they have to ask again")
	}
	c.state.Recall(c.told.Facts(kept), told.Latest(time.Now()))
}

// takeTold is what the next transaction has to have the kernel keep, and forget. The caller has the turn.
func (c *controller) takeTold() (kept, forgotten []ruleset.Told) {
	come, gone := c.state.TakeFacts()
	return c.told.Of(come), c.told.Of(gone)
}

// keepTold brings what the kernel keeps up to date. The snapshot is the one in force. The caller has the turn.
func (c *controller) keepTold(ctx context.Context, snapshot *engine.Snapshot) error {
	update := ruleset.Update{Generation: c.generation}
	if update.Told, update.Untold = c.takeTold(); len(update.Told)+len(update.Untold) == 0 {
		return nil
	}
	versions := c.status().Versions
	if err := c.commit(ctx, update, versions, snapshot); err != nil {
		return err
	}
	if c.status().Err != nil { // it took more than one attempt
		c.record(versions, snapshot, nil)
	}
	return nil
}
