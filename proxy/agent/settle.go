package agent

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/conntrack"
	"github.com/firstpacket/firstpacket/proxy/established"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// settler looks after a change at what was admitted before it: cached tuples, and established flows. Changes that come
// while it works are taken together, so that a storm of them costs one pass over the conntrack table at a time.
type settler struct {
	log       zerolog.Logger
	marks     mark.Layout
	rules     *ruleset.Ruleset
	learned   *learned
	publisher *publisher
	servers   *servers
	evaluator *engine.Evaluator
	flows     *flowlog.Ring
	clock     *clock
	// rewarm has the emptied cache learn again what it is to know beforehand.
	rewarm func() error
	// table is run's, nil until it is needed.
	table *conntrack.Conn

	mu      sync.Mutex
	pending *settlement
	wake    chan struct{}
	settled settledState
}

// settlement is what there is to do.
type settlement struct {
	snapshot   *engine.Snapshot
	generation uint32
	// affected are the addresses to look at; all stands for every one.
	affected addresses
	all      bool
	// named are further addresses whose tuples only are to be looked at.
	named addresses
	// again are tuples that were removed from the kernel's cache, and may have been added once more since. flush says the
	// same of the whole cache.
	again []ruleset.Tuple
	flush bool
	// adopt: the cache may hold tuples that this agent did not see admitted.
	adopt bool
	since time.Time
}

func (s *settlement) contains(a netip.Addr) bool {
	return s.concerns(a) || s.named.contains(a)
}

// concerns tells whether the established flows of an address are to be looked at.
func (s *settlement) concerns(a netip.Addr) bool { return s.all || s.affected.contains(a) }

// merge adds what another change asks for. The newest generation stays: what is tried once more is older than a change
// that came since. Generations are compared as they wrap around.
func (s *settlement) merge(next settlement) {
	if s.snapshot == nil || int32(next.generation-s.generation) >= 0 {
		s.snapshot, s.generation = next.snapshot, next.generation
	}
	s.all = s.all || next.all
	if s.affected == nil {
		s.affected, s.named = addresses{}, addresses{}
	}
	maps.Copy(s.affected, next.affected)
	maps.Copy(s.named, next.named)
	s.again = append(s.again, next.again...)
	s.flush, s.adopt = s.flush || next.flush, s.adopt || next.adopt
}

// settledState is what has been done.
type settledState struct {
	// Generation up to which nothing older is left, in cache or conntrack.
	Generation uint32
	// Revoked and Restored count flows; Took is the time from the change being in force to the end of the last pass.
	Revoked, Restored uint64
	Took              time.Duration
	Err               error
}

func (s *settler) status() settledState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled
}

// settle asks for a pass over everything affected. It does not wait.
func (s *settler) settle(next settlement) {
	s.mu.Lock()
	if s.pending == nil {
		s.pending = &settlement{since: time.Now()}
	}
	s.pending.merge(next)
	s.mu.Unlock()
	s.rouse()
}

func (s *settler) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// learnInterval is how often admitted tuples are taken from the queue threads' rings when nothing else happens.
const learnInterval = 100 * time.Millisecond

// settlePause lies between a change and the pass that follows it, so that changes that come together share one, and
// the first flows to obey are not in its way: whoever walks the conntrack table holds back all packets on his
// processor until he has found a message full of flows, or the end of the table (ctnetlink_dump_table). For the same
// reason no pass follows another before as much time has gone by as it took.
const settlePause = 5 * time.Millisecond

// run works until the context ends.
func (s *settler) run(ctx context.Context) error {
	tick := time.NewTicker(learnInterval)
	defer tick.Stop()
	var rest time.Time // the end of the pause after the last pass
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.clock.sync()
			if err := s.evict(ctx); err != nil {
				return err
			}
		case <-s.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(settlePause, time.Until(rest))):
			}
			began := time.Now()
			if err := s.pass(ctx); err != nil {
				return err
			}
			rest = time.Now().Add(time.Since(began))
		}
	}
}

// evict keeps the kernel's sets from filling up.
func (s *settler) evict(ctx context.Context) error {
	gone := s.learned.takeSurplus()
	if len(gone) == 0 {
		return nil
	}
	if s.publisher.quiesce(ctx) != nil {
		return nil //nolint:nilerr // asked to stop; the next agent looks at the whole cache
	}
	err := s.rules.Forget(gone)
	if err == nil || errors.Is(err, ruleset.ErrSuperseded) {
		return err
	}
	s.log.Warn().Err(err).Msg("cannot remove tuples from the kernel's cache; trying again")
	s.settle(settlement{snapshot: s.publisher.current.Load().snapshot, generation: s.status().Generation, again: gone})
	return nil
}

// pass does what there is to do. Its error is ErrSuperseded or nil.
func (s *settler) pass(ctx context.Context) error {
	s.mu.Lock()
	work := s.pending
	s.pending = nil
	s.mu.Unlock()
	if work == nil {
		return nil
	}
	revoked, restored, err := s.work(ctx, work)
	if err == nil && (work.flush || work.adopt) {
		if again := s.rewarm(); errors.Is(again, ruleset.ErrSuperseded) {
			err = again
		} else if again != nil {
			s.log.Warn().Err(again).Msg("the kernel does not learn the way to the DNS servers; questions are judged one by one")
		}
	}
	if errors.Is(err, ruleset.ErrSuperseded) {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled.Revoked += revoked
	s.settled.Restored += restored
	s.settled.Err = err
	if err == nil {
		s.settled.Generation = work.generation
		s.settled.Took = time.Since(work.since)
		return nil
	}
	// What was not done is to be done: put it back, together with what came in meanwhile.
	s.log.Error().Err(err).Msg("cannot revoke flows that are no longer allowed; trying again")
	if s.pending != nil {
		work.merge(*s.pending)
	}
	s.pending = work
	time.AfterFunc(lastRetry, s.rouse)
	return nil
}

// work does one pass, in an order that leaves no gap between what is being admitted and what is looked at.
func (s *settler) work(ctx context.Context, w *settlement) (revoked, restored uint64, err error) {
	if err := s.forget(ctx, w); err != nil {
		return 0, 0, err
	}
	if !w.all && len(w.affected) == 0 {
		return 0, 0, nil
	}
	// A packet that found its tuple in the cache a moment ago may be about to mark its flow, on another processor. After
	// the barrier all flows that the old state admitted are in the conntrack table.
	ruleset.Barrier()
	return s.revoke(w)
}

// forget removes the tuples that are no longer allowed from the kernel's cache. A thread puts a tuple on its ring
// before the kernel learns it, so a tuple is removed from learned first, then from the kernel, and in between the
// verdicts on their way are waited for.
func (s *settler) forget(ctx context.Context, w *settlement) error {
	if w.adopt {
		ruleset.Barrier()
		held, err := s.rules.Allowed()
		if err != nil {
			return err
		}
		s.learned.adopt(held)
	}
	w.again = append(w.again, s.learned.forget(w, func(t ruleset.Tuple) bool {
		return tupleAllowed(s.evaluator, w.snapshot, t)
	})...)
	if err := s.publisher.quiesce(ctx); err != nil {
		return err
	}
	if !w.flush && !s.learned.overflowed() {
		return s.rules.Forget(w.again)
	}
	w.flush = true
	s.learned.purge()
	if err := s.publisher.quiesce(ctx); err != nil {
		return err
	}
	return s.rules.Flush()
}

// revoke marks the established flows that are no longer allowed, and admits those that are again.
func (s *settler) revoke(w *settlement) (revoked, restored uint64, err error) {
	local, err := established.LocalAddresses()
	if err != nil {
		return 0, 0, err
	}
	table, err := s.conntrack()
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if err != nil {
			s.close() // what is left in its socket must not be read as the next answer
		}
	}()
	var cut, loose []conntrack.Flow
	back, keep := map[uint32][]conntrack.Flow{}, map[uint32][]conntrack.Flow{} // by their new marks
	err = table.Dump(conntrack.Filter{}, func(f *conntrack.Flow) bool {
		t := f.Policy()
		if !w.concerns(t.Src) && !w.concerns(t.Dst) {
			return true
		}
		if _, own := local[t.Src]; own {
			return true // the node always reaches its pods
		}
		v := established.Judge(s.evaluator, w.snapshot, f, local)
		if v.Would() != v.Action {
			s.reportWould(&v, f)
		}
		admitted := s.admittedMark(w.snapshot, &t)
		switch state := f.Mark & s.marks.Mask(); {
		case v.Action == engine.Deny && state != s.marks.Revoked():
			cut = append(cut, *f)
			s.report(&v, f)
		case v.Reason == engine.MidStreamReverse:
			// Its packets pass one by one, see judge: admitting it would let either side open connections on its ports.
			if state != 0 {
				loose = append(loose, *f)
			}
		case v.Action == engine.Allow && state == s.marks.Revoked():
			back[admitted] = append(back[admitted], *f)
		case v.Action == engine.Allow && state != admitted && isolates(&v):
			keep[admitted] = append(keep[admitted], *f)
		}
		return true
	})
	if err != nil {
		return 0, 0, err
	}
	n, err := table.SetMarks(cut, s.marks.Revoked(), s.marks.Mask())
	if err != nil {
		return uint64(n), 0, err
	}
	for _, admitted := range []uint32{s.marks.Admitted(), s.marks.Followed()} {
		m, err := table.SetMarks(back[admitted], admitted, s.marks.Mask())
		restored += uint64(m)
		if err != nil {
			return uint64(n), restored, err
		}
		if _, err := table.SetMarks(keep[admitted], admitted, s.marks.Mask()); err != nil {
			return uint64(n), restored, err
		}
	}
	_, err = table.SetMarks(loose, 0, s.marks.Mask())
	return uint64(n), restored, err
}

// conntrack is the table of flows, which stays open: see ruleset.link for what closing a netfilter socket costs.
func (s *settler) conntrack() (*conntrack.Conn, error) {
	if s.table != nil {
		return s.table, nil
	}
	var err error
	s.table, err = conntrack.Open(0)
	return s.table, err
}

// close gives the socket back; the settler must not run.
func (s *settler) close() {
	if s.table != nil {
		s.table.Close()
		s.table = nil
	}
}

// isolates tells whether a policy had a say in the verdict. Such a flow is marked as admitted though no packet of it
// was ever asked about, as when its pod has just become isolated: it loses no packet and asks no question.
func isolates(v *engine.Verdict) bool {
	for _, d := range []*engine.Decision{v.Egress, v.Ingress} {
		if d != nil && d.Reason != engine.NotIsolated && d.Reason != engine.OwnNode {
			return true
		}
	}
	return false
}

// revokedReason is the reason in the flow log; the engine's says why.
type revokedReason struct{}

func (revokedReason) String() string { return "revoked" }

func (s *settler) report(v *engine.Verdict, f *conntrack.Flow) {
	flow := f.Policy()
	r := recordOf(v, &flow)
	r.Reason, r.Time = revokedReason{}, s.clock.wall()
	s.flows.Put(&r)
}

// reportWould tells what would become of an established flow if nothing was in audit mode. It may be the only packet of
// a long-lived flow that anybody looks at before its policy is enforced.
func (s *settler) reportWould(v *engine.Verdict, f *conntrack.Flow) {
	flow, e := f.Policy(), v.Enforced()
	r := recordOf(&e, &flow)
	r.Verdict, r.Time = engine.Hypothetical(e.Action), s.clock.wall()
	if e.Action == engine.Deny {
		r.Reason = revokedReason{}
	}
	s.flows.Put(&r)
}

// tupleAllowed tells whether a cached tuple is still allowed.
func tupleAllowed(ev *engine.Evaluator, s *engine.Snapshot, t ruleset.Tuple) bool {
	return judgeTuple(ev, s, t).Action == engine.Allow
}
