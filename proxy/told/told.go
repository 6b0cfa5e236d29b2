// Package told translates what pods were told by DNS between the engine, which learns it, and the kernel's table, in
// which it outlives the agent.
package told

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// Clock translates points in time to the clock of the machine, which all programs on it share and nobody can set.
type Clock struct {
	at    time.Time
	since time.Duration // the machine's start, at that time
}

// NewClock reads both clocks. What one Clock has translated, it translates back to the same.
func NewClock() Clock {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("the clock that the runtime uses cannot be read: %v", err))
	}
	return Clock{time.Now(), time.Duration(ts.Nano())}
}

// Of is how facts are kept in the kernel.
func (c Clock) Of(facts []engine.Fact) []ruleset.Told {
	list := make([]ruleset.Told, 0, len(facts))
	for _, f := range facts {
		list = append(list, ruleset.Told{
			Pod: f.Pod, Of: f.Of, Addr: f.Addr, Name: f.Name,
			Until: (f.Until.Sub(c.at) + c.since).Truncate(time.Millisecond),
		})
	}
	return list
}

// Facts is the reverse of Of.
func (c Clock) Facts(list []ruleset.Told) []engine.Fact {
	facts := make([]engine.Fact, 0, len(list))
	for _, t := range list {
		facts = append(facts, engine.Fact{
			Pod: t.Pod, Of: t.Of, Addr: t.Addr, Name: t.Name, Until: c.at.Add(t.Until - c.since),
		})
	}
	return facts
}

// Latest is up to when what was learned until now can hold.
func Latest(now time.Time) time.Time { return now.Add(domain.MaxTTL + domain.Grace) }
