package agent

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

const (
	// noisySources is how many sources can become noisy, to one queue thread, between two looks of the limiter.
	noisySources = 64
	// limitPause is the least time between two transactions of the limiter.
	limitPause = 10 * time.Millisecond
)

// limiter has the kernel hold back the sources that the queue threads found to be noisy.
type limiter struct {
	rings []*noisyRing
	wake  chan struct{}
}

// noisyRing is the way of one queue thread to the limiter.
type noisyRing struct {
	ring[ruleset.Source]
	wake chan<- struct{}
}

func newLimiter() *limiter { return &limiter{wake: make(chan struct{}, 1)} }

// ring makes the ring of one more queue thread, before run.
func (l *limiter) ring() *noisyRing {
	r := &noisyRing{ring: ring[ruleset.Source]{slots: make([]ruleset.Source, noisySources)}, wake: l.wake}
	l.rings = append(l.rings, r)
	return r
}

// tell passes a source on. It happens once for many packets that were dropped, so that it may wake the limiter.
func (r *noisyRing) tell(s ruleset.Source) {
	r.put(s)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run works until the context ends, or another agent has taken over. Whatever else fails is told of and tried again
// with the next packets of the source.
func (l *limiter) run(ctx context.Context, rules *ruleset.Ruleset, log zerolog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		}
		var sources []ruleset.Source
		for _, r := range l.rings {
			r.drain(func(s ruleset.Source) { sources = append(sources, s) })
		}
		err := rules.Limit(sources)
		if errors.Is(err, ruleset.ErrSuperseded) {
			return err
		}
		if err != nil {
			log.Warn().Err(err).Msg("cannot have the kernel hold back noisy sources")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(limitPause):
		}
	}
}
