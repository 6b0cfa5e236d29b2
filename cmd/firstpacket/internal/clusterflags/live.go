package clusterflags

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/policycache/explain"
	"github.com/firstpacket/firstpacket/policycache/reach"
)

// Live is the cluster of an API server, followed as it changes.
type Live struct {
	flags     Flags
	userAgent string

	// tried is closed once all of the cluster is known, or why it is not.
	tried chan struct{}
	once  sync.Once

	mu      sync.Mutex
	cluster *Cluster // nil until all of it is known
	version uint64
	err     error // why not
}

// errWaiting is why a cluster is not known at first.
var errWaiting = errors.New("the API server has not told everything yet")

// Live makes a cluster that Run follows.
func (f *Flags) Live(userAgent string) *Live {
	return &Live{flags: *f, userAgent: userAgent, tried: make(chan struct{}), err: errWaiting}
}

// retryPause lies between attempts to begin following.
const retryPause = 5 * time.Second

// Run follows the cluster until the context ends. What cannot be followed is tried again; whoever asks meanwhile is
// told why there is no answer.
func (l *Live) Run(ctx context.Context) {
	for {
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		l.fail(err)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return
		}
	}
}

func (l *Live) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cluster, l.err = nil, err
	l.once.Do(func() { close(l.tried) })
}

func (l *Live) follow(ctx context.Context) error {
	c := l.flags.newCluster()
	q, host, err := c.open(ctx, &l.flags, l.userAgent)
	if err != nil {
		return err
	}
	defer q.Close()
	begin, cancel := context.WithTimeout(ctx, l.flags.Timeout)
	defer cancel()
	if err := q.WaitSynced(begin); err != nil {
		return fmt.Errorf("%s did not tell everything within %s; check that you may list and watch: %w", host,
			l.flags.Timeout, err)
	}
	for {
		b, err := q.Next(ctx)
		if err != nil {
			return err
		}
		l.mu.Lock()
		// Lists and watches that fail later are tried again by those who run them; what was known stays.
		c.snapshot, _ = c.state.Apply(c.takeServices(b.Changes))
		l.cluster, l.err = c, nil
		l.version++
		l.once.Do(func() { close(l.tried) })
		l.mu.Unlock()
	}
}

// Asked is what questions are asked about, now. It waits until that is known for the first time.
func (l *Live) Asked(ctx context.Context) (explain.Cluster, error) {
	select {
	case <-l.tried:
	case <-ctx.Done():
		return explain.Cluster{}, context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cluster == nil {
		return explain.Cluster{}, l.err
	}
	return l.cluster.Asked(), nil
}

// World is what matrices are made of, now, without waiting. The version is another one whenever the cluster may have
// changed.
func (l *Live) World() (w reach.World, version uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cluster == nil {
		return reach.World{}, 0, l.err
	}
	return l.cluster.World(), l.version, nil
}
