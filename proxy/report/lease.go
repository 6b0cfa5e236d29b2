package report

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// elector takes part in an election by a Lease, as client-go's leaderelection does, whose records it reads and writes.
// It differs in what it costs: on a thousand nodes candidates must not ask every two seconds, and what client-go's
// needs would take 19 MiB of memory on each. The clocks of nodes are never compared: a Lease has ended when it has been
// seen unchanged for its duration.
type elector struct {
	client              *client
	namespace, identity string
	duration            time.Duration
	log                 zerolog.Logger
	elected             atomic.Bool

	// seen is the version of the Lease that was last seen new, seenAt when.
	seen   string
	seenAt time.Time
}

// errLost says that another agent has the Lease.
var errLost = errors.New("another agent is elected")

// A candidate looks twice in a Lease's duration, the holder renews it four times, and gives up its term when a quarter
// is left.
func (e *elector) look() time.Duration  { return wait.Jitter(e.duration/2, 0.2) }
func (e *elector) renew() time.Duration { return e.duration / 4 }
func (e *elector) limit() time.Duration { return e.duration / 4 * 3 }

// releasePatience bounds the last request, which hands the Lease to whoever looks next.
const releasePatience = 2 * time.Second

// run calls lead for each term, with a context that ends with it, and waits for its return.
func (e *elector) run(ctx context.Context, lead func(context.Context)) {
	for {
		lease, err := e.acquire(ctx)
		switch {
		case err == nil:
			e.log.Info().Str("lease", e.namespace+"/"+LeaseName).Msg("elected to write conditions and events of policies")
			e.term(ctx, lease, lead)
		case !errors.Is(err, errLost) && ctx.Err() == nil:
			e.log.Warn().Err(err).Msg("cannot take part in the election of who writes conditions and events of policies")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(e.look()):
		}
	}
}

// term leads until the Lease is lost or the context ends, and then gives it back if it can.
func (e *elector) term(ctx context.Context, lease *coordinationv1.Lease, lead func(context.Context)) {
	term, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	e.elected.Store(true)
	go func() {
		defer close(ended)
		lead(term)
	}()
	err := e.keep(ctx, lease)
	end()
	<-ended
	e.elected.Store(false)
	if ctx.Err() == nil {
		e.log.Info().AnErr("reason", err).Msg("no longer elected to write conditions and events of policies")
		return
	}
	release, cancel := context.WithTimeout(context.WithoutCancel(ctx), releasePatience)
	defer cancel()
	nobody := ""
	lease.Spec.HolderIdentity = &nobody
	if err := e.client.put(release, e.path(), lease); err != nil {
		e.log.Debug().Err(err).Msg("the lease is not given back; it ends by itself")
	}
}

// keep renews the Lease until it is lost or the context ends.
func (e *elector) keep(ctx context.Context, lease *coordinationv1.Lease) error {
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(e.renew()):
		}
		attempt, cancel := context.WithDeadline(ctx, renewed.Add(e.limit()))
		began := time.Now()
		err := e.take(attempt, lease)
		cancel()
		switch {
		case err == nil:
			renewed = began
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errLost) || !time.Now().Before(renewed.Add(e.limit())):
			return err
		}
	}
}

// acquire returns the Lease if it is this agent's now.
func (e *elector) acquire(ctx context.Context) (*coordinationv1.Lease, error) {
	lease := new(coordinationv1.Lease)
	err := e.client.get(ctx, e.path(), lease)
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{
			TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: LeaseName},
		}
		e.sign(lease)
		if err = e.client.post(ctx, leases(e.namespace), lease); apierrors.IsAlreadyExists(err) {
			return nil, errLost
		}
	} else if err == nil {
		if !e.free(lease) {
			return nil, errLost
		}
		err = e.take(ctx, lease)
	}
	if err != nil {
		if errors.Is(err, errLost) {
			return nil, err
		}
		return nil, fmt.Errorf("lease %s/%s: %w", e.namespace, LeaseName, err)
	}
	return lease, nil
}

// free tells whether nobody holds the Lease any more.
func (e *elector) free(lease *coordinationv1.Lease) bool {
	if h := lease.Spec.HolderIdentity; h == nil || *h == "" || *h == e.identity {
		return true
	}
	if e.seen != lease.ResourceVersion {
		e.seen, e.seenAt = lease.ResourceVersion, time.Now()
	}
	lasts := e.duration
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	return time.Since(e.seenAt) > lasts
}

// take writes this agent into the Lease as it was read: whoever changed it meanwhile has it.
func (e *elector) take(ctx context.Context, lease *coordinationv1.Lease) error {
	next := lease.DeepCopy()
	e.sign(next)
	err := e.client.put(ctx, e.path(), next)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return errLost
	}
	if err == nil {
		*lease = *next
	}
	return err
}

func (e *elector) sign(lease *coordinationv1.Lease) {
	now, seconds := metav1.NowMicro(), int32(max(e.duration/time.Second, 1))
	s := &lease.Spec
	if s.HolderIdentity == nil || *s.HolderIdentity != e.identity {
		transitions := int32(0)
		if s.LeaseTransitions != nil {
			transitions = *s.LeaseTransitions + 1
		}
		s.AcquireTime, s.LeaseTransitions = &now, &transitions
	}
	s.HolderIdentity, s.LeaseDurationSeconds, s.RenewTime = &e.identity, &seconds, &now
}

func leases(namespace string) string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + namespace + "/leases"
}

func (e *elector) path() string { return leases(e.namespace) + "/" + LeaseName }
