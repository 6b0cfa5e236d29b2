package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// What pods were told by DNS is kept in the kernel's table, for the next agent: an answer goes on to its pod after the
// transaction that has it, so that there is no connection under a name of which the next agent would not know.

// uptime translates points in time to the clock of the machine, which all agents on it share and nobody can set.
type uptime struct {
	at    time.Time
	since time.Duration // the machine's start, at that time
}

func newUptime() uptime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("the clock that the runtime uses cannot be read: %v", err))
	}
	return uptime{time.Now(), time.Duration(ts.Nano())}
}

// of is a point in time as time since the start of the machine.
func (u uptime) of(t time.Time) time.Duration { return t.Sub(u.at) + u.since }

// time is the reverse of of.
func (u uptime) time(d time.Duration) time.Time { return u.at.Add(d - u.since) }

// told is how facts are kept in the kernel.
func (u uptime) told(facts []engine.Fact) []ruleset.Told {
	list := make([]ruleset.Told, 0, len(facts))
	for _, f := range facts {
		list = append(list, ruleset.Told{
			Pod: f.Pod, Of: f.Of, Addr: f.Addr, Name: f.Name, Until: u.of(f.Until).Truncate(time.Millisecond),
		})
	}
	return list
}

// facts is the reverse of told.
func (u uptime) facts(list []ruleset.Told) []engine.Fact {
	facts := make([]engine.Fact, 0, len(list))
	for _, t := range list {
		facts = append(facts, engine.Fact{Pod: t.Pod, Of: t.Of, Addr: t.Addr, Name: t.Name, Until: u.time(t.Until)})
	}
	return facts
}

// recall reads what pods have told earlier agents. If it cannot be read, nothing is known: pods ask again.
func (c *controller) recall() {
	told, err := c.rules.Told()
	if err != nil {
		c.log.Warn().Err(err).Msg("what pods were told by DNS is lost: they have to ask again")
	}
	c.state.Recall(c.uptime.facts(told), time.Now().Add(domain.MaxTTL+domain.Grace))
}

// takeTold is what the next transaction has to have the kernel keep, and forget. The caller has the turn.
func (c *controller) takeTold() (told, untold []ruleset.Told) {
	come, gone := c.state.TakeFacts()
	return c.uptime.told(come), c.uptime.told(gone)
}

// keepTold brings what the kernel keeps up to date. The snapshot is the one in force. The caller has the turn.
func (c *controller) keepTold(ctx context.Context, snapshot *engine.Snapshot) error {
	told, untold := c.takeTold()
	if len(told)+len(untold) == 0 {
		return nil
	}
	update := ruleset.Update{Generation: c.generation, Told: told, Untold: untold}
	versions := c.status().Versions
	if err := c.commit(ctx, update, versions, snapshot); err != nil {
		return err
	}
	if c.status().Err != nil { // it took more than one attempt
		c.record(versions, snapshot, nil)
	}
	return nil
}
