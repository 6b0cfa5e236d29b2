package main

import (
	"context"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/policycache/reach"
	"github.com/firstpacket/firstpacket/proxy/traffic"
)

// possible keeps what policy allows in a cluster for those who look, as new as its cost permits.
type possible struct {
	// world is the cluster, and the version that tells whether it is another one.
	world func() (reach.World, uint64, error)
	wake  chan struct{}

	mu   sync.Mutex
	last traffic.Possible
}

func newPossible(world func() (reach.World, uint64, error)) *possible {
	return &possible{world: world, wake: make(chan struct{}, 1)}
}

// now returns what is known, and has it looked at anew.
func (p *possible) now() traffic.Possible {
	select {
	case p.wake <- struct{}{}:
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

const (
	// possiblePause lies between two looks at the cluster at least, and possibleShare times as long as the last took.
	possiblePause = 2 * time.Second
	possibleShare = 10
)

// run asks for what policy allows whenever somebody has looked and the cluster has changed, until the context ends.
func (p *possible) run(ctx context.Context) {
	var version uint64
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		world, now, err := p.world()
		switch {
		case err != nil:
			version = 0
			p.set(traffic.Possible{Unknown: err.Error()})
		case now != version:
			next, err := traffic.PossibleIn(ctx, world)
			if err != nil {
				return
			}
			version = now
			p.set(next)
		}
		select {
		case <-time.After(max(possiblePause, possibleShare*time.Since(began))):
		case <-ctx.Done():
			return
		}
	}
}

func (p *possible) set(next traffic.Possible) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = next
}
