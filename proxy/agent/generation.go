package agent

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/firstpacket/firstpacket/policycache/engine"
)

// view is what queue threads judge with: a snapshot, and the generation number that their packet marks carry.
type view struct {
	snapshot *engine.Snapshot
	// generation counts the transactions of this agent; marks hold it modulo the mark's few bits. It starts above zero.
	generation uint32
}

// nextGeneration returns the first generation after last that belongs to the bank, 0 or 1. numbers is how many
// different generations a mark can hold; the banks have half of these each. Two agents on one node hold different
// banks (see
// bank.go), so the verdicts of one never look like the other's, however late they come.
func nextGeneration(last uint32, bank, numbers int) uint32 {
	for g := last + 1; ; g++ {
		if bankOf(g, numbers) == bank && g != 0 { // 0 means idle to the publisher
			return g
		}
	}
}

// bankOf is the bank that a generation belongs to.
func bankOf(generation uint32, numbers int) int { return int(generation / uint32(numbers/2) % 2) }

// publisher hands views to queue threads and knows which of them are still in use.
//
// A packet mark holds only a few bits of the generation, so a number comes round again. It must not while a thread
// may still send a verdict marked with it: a stale allow would then look current. This is a hazard pointer with
// generations for pointers.
type publisher struct {
	current atomic.Pointer[view]
	// committed is the generation that the kernel enforces: that of current, or for the moment of a transaction the one
	// before. Packets judged in this moment would come round until the transaction is made, so they are held instead.
	committed atomic.Uint32
	// passing: another agent has taken over, and packets are handed on to it.
	passing atomic.Bool
	users   []*viewUser
}

// viewUser is one queue thread's claim on a view. It is padded to a cache line: it is written twice per batch.
type viewUser struct {
	using   atomic.Uint32 // generation, 0 when the thread is between batches
	batches atomic.Uint32 // how many it has finished
	_       [56]byte
}

// acquire returns the current view and keeps its generation's number from being used again until release.
func (u *viewUser) acquire(p *publisher) *view {
	for {
		v := p.current.Load()
		u.using.Store(v.generation)
		// The view may have been replaced before the claim could be seen: only a claim on the view that is still
		// current was made in time.
		if p.current.Load() == v {
			return v
		}
	}
}

func (u *viewUser) release() {
	u.batches.Add(1)
	u.using.Store(0)
}

// quiesce blocks until every verdict that a thread had decided on when it was called has been acted on by the kernel.
func (p *publisher) quiesce(ctx context.Context) error {
	for _, u := range p.users {
		batch := u.batches.Load()
		if err := u.wait(ctx, func(using uint32) bool { return using == 0 || u.batches.Load() != batch }); err != nil {
			return err
		}
	}
	return nil
}

// waitReusable blocks until no thread can still send a mark that looks like generation next. numbers is how many
// different generations a mark can hold.
func (p *publisher) waitReusable(ctx context.Context, next uint32, numbers int) error {
	for _, u := range p.users {
		err := u.wait(ctx, func(using uint32) bool { return using == 0 || next-using < uint32(numbers) })
		if err != nil {
			return err
		}
	}
	return nil
}

// wait blocks until the thread's claim is as wanted. A batch takes microseconds; only a thread that the scheduler took
// off its core is waited for longer.
func (u *viewUser) wait(ctx context.Context, until func(using uint32) bool) error {
	for spins := 0; !until(u.using.Load()); spins++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if spins < 100 {
			runtime.Gosched()
		} else {
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}
