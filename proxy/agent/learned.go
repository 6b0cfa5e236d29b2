package agent

import (
	"slices"
	"sync"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// learnedRing is how many tuples a queue thread may admit between two looks of the learned set at its ring.
const learnedRing = 1 << 14

// learned knows which tuples the kernel's allowed sets hold: what queue threads admitted, less what was forgotten.
// It is what a policy change is checked against, and it keeps the sets from filling up.
type learned struct {
	mu sync.Mutex
	// tuples are in the order of their admission: the kernel does not tell which elements it uses.
	tuples *tuples
	rings  []*ring[ruleset.Tuple]
	// lost is the number of tuples that the rings could not take and that a resync has not recovered yet.
	lost uint64
	// surplus are tuples that had to leave the list; they have to leave the kernel too.
	surplus []ruleset.Tuple
}

// newLearned tracks up to size tuples per family pair, fed by one ring per queue thread.
func newLearned(size, threads int) *learned {
	l := &learned{tuples: newTuples(size)}
	for range threads {
		l.rings = append(l.rings, newRing[ruleset.Tuple](learnedRing))
	}
	return l
}

// add puts a tuple on the list. The caller holds mu.
func (l *learned) add(t ruleset.Tuple) {
	if oldest, left := l.tuples.add(t); left {
		l.surplus = append(l.surplus, oldest)
	}
}

// drain takes in what the queue threads admitted since the last time. The caller holds mu.
func (l *learned) drain() {
	for _, r := range l.rings {
		r.drain(l.add)
	}
}

// lostCount is the number of tuples that the rings could not take since the start.
func (l *learned) lostCount() uint64 {
	var lost uint64
	for _, r := range l.rings {
		lost += r.lost.Load()
	}
	return lost
}

// overflowed tells whether tuples were lost on their way here, so that only the kernel knows all of them.
func (l *learned) overflowed() bool {
	lost := l.lostCount()
	l.mu.Lock()
	defer l.mu.Unlock()
	return lost != l.lost
}

// replace sets the content to what the kernel was seen to hold.
func (l *learned) replace(held []ruleset.Tuple) {
	lost := l.lostCount()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	l.tuples.clear()
	l.lost, l.surplus = lost, nil
	for _, t := range held {
		l.add(t)
	}
}

// adopt adds what the kernel was seen to hold.
func (l *learned) adopt(held []ruleset.Tuple) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range held {
		if !l.tuples.contains(t) {
			l.add(t)
		}
	}
}

// knows tells whether all of these tuples are here.
func (l *learned) knows(held []ruleset.Tuple) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	return !slices.ContainsFunc(held, func(t ruleset.Tuple) bool { return !l.tuples.contains(t) })
}

// purge forgets everything: the kernel's sets are about to be emptied.
func (l *learned) purge() { l.replace(nil) }

// forget removes and returns every tuple with an affected address that is no longer allowed, and the surplus.
// The caller removes them from the kernel, after the publisher's quiesce: a thread puts a tuple on its ring a moment
// before the kernel learns it. Removing one that is not there is no error.
func (l *learned) forget(affected affectedSet, allowed func(ruleset.Tuple) bool) []ruleset.Tuple {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	gone := l.surplus
	l.surplus = nil
	for t := range l.tuples.all() {
		if (affected.contains(t.Src) || affected.contains(t.Dst)) && !allowed(t) {
			gone = append(gone, t)
			l.tuples.remove(t)
		}
	}
	return gone
}

// takeSurplus removes and returns the surplus, for the caller to do with as with what forget returns.
func (l *learned) takeSurplus() []ruleset.Tuple {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	gone := l.surplus
	l.surplus = nil
	return gone
}

// list is what the kernel is believed to hold.
func (l *learned) list() []ruleset.Tuple {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(l.tuples.all())
}

// len is the number of tuples believed to be in the kernel.
func (l *learned) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tuples.len()
}
