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

// publisher hands views to queue threads and knows which of them are still in use.
//
// A packet mark holds only a few bits of the generation, so a number comes round again. It must not while a thread
// may still send a verdict marked with it: a stale allow would then look current. This is a hazard pointer with
// generations for pointers.
type publisher struct {
	current atomic.Pointer[view]
	users   []*viewUser
}

// viewUser is one queue thread's claim on a view. It is padded to a cache line: it is written twice per batch.
type viewUser struct {
	using atomic.Uint32 // generation, 0 when the thread is between batches
	_     [60]byte
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

func (u *viewUser) release() { u.using.Store(0) }

// waitReusable blocks until no thread can still send a mark that looks like generation next. numbers is how many
// different generations a mark can hold.
func (p *publisher) waitReusable(ctx context.Context, next uint32, numbers int) error {
	for _, u := range p.users {
		for spins := 0; ; spins++ {
			g := u.using.Load()
			if g == 0 || next-g < uint32(numbers) {
				break
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			// A batch takes microseconds; only a thread that the scheduler took off its core is waited for longer.
			if spins < 100 {
				runtime.Gosched()
			} else {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	return nil
}
