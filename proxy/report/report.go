// Package report writes back to the API server: conditions of policies, events about policies that cannot be honoured,
// and, where that is wanted, events about denied connections of pods.
//
// Every agent compiles every policy and comes to the same result, so one of them, elected by a Lease, writes for all.
// Nothing here decides anything: an agent that cannot write enforces all the same. Two agents that take themselves for
// the elected one, for a moment, write the same: conditions are written only where they differ, and an event's name is
// made of what it says.
package report

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

const (
	// Controller names firstpacket as the writer of events and fields.
	Controller = "firstpacket.dev/agent"
	// LeaseName is the name of the Lease.
	LeaseName = "firstpacket"
	// DefaultLeaseDuration is long, because nothing is urgent here, and every node asks about twice in this time.
	DefaultLeaseDuration = time.Minute
)

const (
	// gather is how long changes are gathered before they are told.
	gather = 500 * time.Millisecond
	// renewal is how often everything is looked at again: conditions may have been changed by others, and the server
	// forgets events, after an hour by default.
	renewal = 30 * time.Minute
	// Pauses after a failure.
	firstPause = time.Second
	lastPause  = 2 * time.Minute
)

// Config says what to write, and as whom.
type Config struct {
	// API says how to reach the API server.
	API *rest.Config
	// Identity tells this agent from all others, those on the same node too. Instance is who events are from.
	Identity, Instance string
	// Namespace has the Lease, which others than the holder respect for LeaseDuration, in whole seconds.
	Namespace     string
	LeaseDuration time.Duration
	// Policies lists those that Wants asks for, as they are in force. It may take a moment and is called about once for
	// each Changed.
	Policies func() []*rule.Policy
	// Audit says that no policy is enforced.
	Audit bool
	Log   zerolog.Logger
}

// Writer takes part in the election and writes while it is elected.
type Writer struct {
	cfg     Config
	client  *client
	elector *elector
	changed chan struct{}
	// told is what has been written in this term.
	told    map[rule.Ref]outcome
	written atomic.Uint64
}

// New makes a Writer; Run has it work.
func New(cfg Config) (*Writer, error) {
	c, err := newClient(cfg.API)
	if err != nil {
		return nil, err
	}
	return &Writer{
		cfg: cfg, client: c, changed: make(chan struct{}, 1),
		elector: &elector{
			client: c, namespace: cfg.Namespace, identity: cfg.Identity, duration: cfg.LeaseDuration, log: cfg.Log,
		},
	}, nil
}

// Wants tells whether there may be anything to write about the policy.
func Wants(p *rule.Policy) bool { return len(p.Problems) > 0 || kinds[p.Ref.Dialect].conditions }

// Changed says that policies may have changed. It does not wait.
func (w *Writer) Changed() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Elected tells whether this agent writes.
func (w *Writer) Elected() bool { return w.elector.elected.Load() }

// Written is the number of conditions and events written so far.
func (w *Writer) Written() uint64 { return w.written.Load() }

// Run takes part until the context ends.
func (w *Writer) Run(ctx context.Context) { w.elector.run(ctx, w.write) }

// write writes until the context, which is that of one term, ends.
func (w *Writer) write(ctx context.Context) {
	w.told = map[rule.Ref]outcome{}
	again := time.NewTicker(renewal)
	defer again.Stop()
	pause := firstPause
	for {
		var retry <-chan time.Time
		if err := w.pass(ctx); err == nil {
			pause = firstPause
		} else if ctx.Err() == nil {
			w.cfg.Log.Warn().Err(err).Dur("retry", pause).Msg("cannot write what was made of policies")
			retry = time.After(wait.Jitter(pause, 0.5))
			pause = min(2*pause, lastPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-again.C:
			w.told = map[rule.Ref]outcome{}
		case <-w.changed:
			select {
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		}
	}
}

// pass writes what has not been told yet. It goes on after a failure and returns the first one.
func (w *Writer) pass(ctx context.Context) (first error) {
	now := map[rule.Ref]outcome{}
	for _, p := range w.cfg.Policies() {
		o := outcomeOf(p, w.cfg.Audit)
		if w.told[p.Ref] == o {
			now[p.Ref] = o
			continue
		}
		done, err := w.tell(ctx, p.Ref, &o)
		if done {
			now[p.Ref] = o
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	w.told = now
	return first
}

// tell writes about one policy. done is false, without an error too, when the policy is not what the server has: the
// watch is about to bring news of it.
func (w *Writer) tell(ctx context.Context, ref rule.Ref, o *outcome) (done bool, err error) {
	if kinds[ref.Dialect].conditions {
		if done, err = w.setCondition(ctx, ref, o); !done {
			return false, err
		}
	}
	if o.accepted {
		return true, nil
	}
	if err := w.event(ctx, ref, o); err != nil {
		return false, err
	}
	return true, nil
}
