package agent

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/conntrack"
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
	evaluator *engine.Evaluator
	flows     *flowlog.Ring // nil without a flow log
	clock     *clock

	mu      sync.Mutex
	pending *settlement
	wake    chan struct{}
	settled settledState
}

// settlement is what there is to do.
type settlement struct {
	snapshot   *engine.Snapshot
	generation uint32
	affected   addresses
	all        bool
	since      time.Time
}

func (s *settlement) contains(a netip.Addr) bool { return s.all || s.affected.contains(a) }

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
func (s *settler) settle(snapshot *engine.Snapshot, generation uint32, affected affectedSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == nil {
		s.pending = &settlement{affected: addresses{}, since: time.Now()}
	}
	s.pending.snapshot, s.pending.generation = snapshot, generation
	switch a := affected.(type) {
	case addresses:
		for addr := range a {
			s.pending.affected[addr] = struct{}{}
		}
	default:
		s.pending.all = true
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// learnInterval is how often admitted tuples are taken from the queue threads' rings when nothing else happens.
const learnInterval = 100 * time.Millisecond

// run works until the context ends.
func (s *settler) run(ctx context.Context) error {
	tick := time.NewTicker(learnInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.clock.sync()
			s.evict()
		case <-s.wake:
			s.pass(ctx)
		}
	}
}

// evict keeps the kernel's sets from filling up.
func (s *settler) evict() {
	s.learned.collect()
	if s.learned.surplusLen() == 0 {
		return
	}
	if err := s.rules.Forget(s.learned.forget(addresses{}, nil)); err != nil {
		s.log.Warn().Err(err).Msg("cannot remove tuples from the kernel's cache")
	}
}

func (s *settler) pass(ctx context.Context) {
	s.mu.Lock()
	work := s.pending
	s.pending = nil
	s.mu.Unlock()
	if work == nil {
		return
	}
	revoked, restored, err := s.work(work)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled.Revoked += revoked
	s.settled.Restored += restored
	s.settled.Err = err
	if err == nil {
		s.settled.Generation = work.generation
		s.settled.Took = time.Since(work.since)
		return
	}
	// What was not done is to be done: put it back, together with what came in meanwhile.
	s.log.Error().Err(err).Msg("cannot revoke flows that are no longer allowed; trying again")
	if next := s.pending; next != nil {
		work.snapshot, work.generation = next.snapshot, next.generation
		work.all = work.all || next.all
		for a := range next.affected {
			work.affected[a] = struct{}{}
		}
	}
	s.pending = work
	time.AfterFunc(lastRetry, func() {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	})
}

// work does one pass. Packets that had passed rule 3 when the transaction came may have been admitted after it, on
// another processor; the barrier waits for them, so that what is looked at afterwards is all there is.
func (s *settler) work(w *settlement) (revoked, restored uint64, err error) {
	ruleset.Barrier()
	gone := s.learned.forget(w, func(t ruleset.Tuple) bool { return tupleAllowed(s.evaluator, w.snapshot, t) })
	if err := s.rules.Forget(gone); err != nil {
		return 0, 0, err
	}
	return s.revoke(w)
}

// revoke marks the established flows that are no longer allowed, and unmarks those that are again.
func (s *settler) revoke(w *settlement) (revoked, restored uint64, err error) {
	local, err := localAddresses()
	if err != nil {
		return 0, 0, err
	}
	table, err := conntrack.Open(0)
	if err != nil {
		return 0, 0, err
	}
	defer table.Close()
	var cut, back []conntrack.Flow
	err = table.Dump(conntrack.Filter{}, func(f *conntrack.Flow) bool {
		t := f.Policy()
		if !w.contains(t.Src) && !w.contains(t.Dst) {
			return true
		}
		if local.contains(t.Src) {
			return true // the node always reaches its pods
		}
		v := s.judge(w.snapshot, f, local)
		switch state := f.Mark & s.marks.Mask(); {
		case v.Action == engine.Deny && state != s.marks.Revoked():
			cut = append(cut, *f)
			s.report(&v, f)
		case v.Action == engine.Allow && state == s.marks.Revoked():
			back = append(back, *f)
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
	m, err := table.SetMarks(back, s.marks.Admitted(), s.marks.Mask())
	return uint64(n), uint64(m), err
}

// judge asks for the verdict of an established flow. Conntrack knows who opened it, except for TCP that it picked up in
// the middle.
func (s *settler) judge(snap *engine.Snapshot, f *conntrack.Flow, local affectedSet) engine.Verdict {
	flow := f.Policy()
	hook := engine.Forward
	if local.contains(flow.Dst) {
		hook = engine.Input
	}
	return s.evaluator.Judge(snap, &flow, hook, true)
}

// revokedReason is the reason in the flow log; the engine's says why.
type revokedReason struct{}

func (revokedReason) String() string { return "revoked" }

func (s *settler) report(v *engine.Verdict, f *conntrack.Flow) {
	if s.flows == nil {
		return
	}
	flow := f.Policy()
	r := recordOf(v, &flow)
	r.Reason, r.Time = revokedReason{}, s.clock.wall()
	s.flows.Put(&r)
}

// tupleAllowed judges a cached tuple as its next first packet would be.
func tupleAllowed(ev *engine.Evaluator, s *engine.Snapshot, t ruleset.Tuple) bool {
	flow := packet.Flow{Src: t.Src, Dst: t.Dst, DstPort: t.DstPort, Proto: t.Proto, Form: packet.Complete}
	if t.Proto == packet.ProtoTCP {
		flow.TCPFlags = packet.FlagSYN
	}
	return ev.Judge(s, &flow, engine.Forward, true).Action == engine.Allow
}

// localAddresses are the addresses of this node's own interfaces.
func localAddresses() (addresses, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	set := addresses{}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap().WithZone("")] = struct{}{}
		}
	}
	return set, nil
}
