package agent

import (
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// learnedRing is how many tuples a queue thread may admit between two looks of the learned set at its ring.
const learnedRing = 1 << 14

// learned knows which tuples the kernel's allowed sets hold: what queue threads admitted, less what was forgotten.
// It is what a policy change is checked against, and it keeps the sets from filling up.
type learned struct {
	mu sync.Mutex
	// tuples is an LRU by admission: the kernel does not tell which elements it uses.
	tuples *simplelru.LRU[ruleset.Tuple, struct{}]
	rings  []*ring[ruleset.Tuple]
	// lost is the number of tuples that the rings could not take and that a resync has not recovered yet.
	lost uint64
	// surplus are tuples pushed out of the LRU; they have to leave the kernel too.
	surplus []ruleset.Tuple
}

// newLearned tracks up to size tuples per family pair, fed by one ring per queue thread.
func newLearned(size, threads int) (*learned, error) {
	l := &learned{}
	for range threads {
		l.rings = append(l.rings, newRing[ruleset.Tuple](learnedRing))
	}
	var err error
	l.tuples, err = simplelru.NewLRU(size, func(t ruleset.Tuple, _ struct{}) { l.surplus = append(l.surplus, t) })
	return l, err
}

// collect takes in what the queue threads admitted since the last call.
func (l *learned) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
}

func (l *learned) drain() {
	for _, r := range l.rings {
		r.drain(func(t ruleset.Tuple) { l.tuples.Add(t, struct{}{}) })
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
	l.tuples.Purge()
	l.lost, l.surplus = lost, nil
	for _, t := range held {
		l.tuples.Add(t, struct{}{})
	}
}

// adopt adds what the kernel was seen to hold.
func (l *learned) adopt(held []ruleset.Tuple) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range held {
		if !l.tuples.Contains(t) {
			l.tuples.Add(t, struct{}{})
		}
	}
}

// knows tells whether all of these tuples are here.
func (l *learned) knows(held []ruleset.Tuple) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drain()
	return !slices.ContainsFunc(held, func(t ruleset.Tuple) bool { return !l.tuples.Contains(t) })
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
	var gone []ruleset.Tuple
	for _, t := range l.tuples.Keys() {
		if (affected.contains(t.Src) || affected.contains(t.Dst)) && !allowed(t) {
			gone = append(gone, t)
		}
	}
	for _, t := range gone {
		l.tuples.Remove(t)
	}
	// Remove reports to the eviction callback as well, so the surplus holds gone already.
	gone, l.surplus = l.surplus, nil
	return gone
}

// surplusLen is the number of tuples waiting to leave the kernel.
func (l *learned) surplusLen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.surplus)
}

// list is what the kernel is believed to hold.
func (l *learned) list() []ruleset.Tuple {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tuples.Keys()
}

// len is the number of tuples believed to be in the kernel.
func (l *learned) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tuples.Len()
}
