// Package agent enforces policy on one node: it carries the cluster's state from the sources through the policy engine
// into the kernel, and answers the packets that the kernel diverts.
//
// Its parts, each in a file: the controller brings changes into force (controller.go), the judges answer packets, one
// for each queue thread (judge.go), the settler looks after what was admitted before a change (settle.go), and the
// generation of a verdict ties them together (generation.go).
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/flowstream"
	"github.com/firstpacket/firstpacket/proxy/health"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/metrics"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/report"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
	"github.com/firstpacket/firstpacket/proxy/told"
)

// Agent is a running agent, put together by Run.
type agent struct {
	cfg     Config
	marks   mark.Layout
	started time.Time

	rules      *ruleset.Ruleset // for reading only
	publisher  *publisher
	learned    *learned
	judges     []*judge
	names      *names
	queues     atomic.Pointer[[]*queue.Queue] // nil until they are open
	settler    *settler
	limiter    *limiter
	controller *controller
	source     *feed                        // set before changes
	changes    atomic.Pointer[source.Queue] // nil until the source is open
	flowLog    *flowlog.Log
	flows      *flowstream.Hub    // the log's lines
	flowStream *flowstream.Server // nil without a socket for it
	traffic    pageTraffic
	bridges    bridges
	podEvents  *report.Pods // nil where they are not wanted
}

// Run enforces until the context ends; then it returns nil and leaves its rules in the kernel. Any other return is an
// error of one sentence that says what to do: without it the agent could not do its job any more.
func Run(ctx context.Context, cfg Config) (err error) {
	setGCPercent(startGCPercent)
	a := &agent{cfg: cfg, started: time.Now()}
	if a.marks, err = cfg.validate(); err != nil {
		return err
	}
	output, err := a.openFlowLog()
	if err != nil {
		return err
	}
	defer output.Close()
	defer a.closeFlowLog()
	if a.flowStream != nil {
		defer a.flowStream.Close()
	}
	if err := a.openKernel(); err != nil {
		return err
	}
	defer a.rules.Close()
	if err := a.build(); err != nil {
		return err
	}
	stop := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.serve(ctx) })
	if a.flowStream != nil {
		group.Go(func() error { return a.flowStream.Serve(ctx) })
	}
	group.Go(func() error {
		defer cancel()
		return a.enforce(ctx)
	})
	err = group.Wait()
	if stop.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, source.ErrClosed)) {
		err = nil // asked to stop while it was still waiting for the cluster's state
	}
	if errors.Is(err, ruleset.ErrSuperseded) {
		if cfg.WaitWhenReplaced {
			cfg.Log.Info().Msg("another agent has taken over this node; waiting to be ended")
			<-stop.Done()
		}
		cfg.Log.Info().Msg("stopped: another agent has taken over this node")
		return nil
	}
	if err != nil {
		return err
	}
	cfg.Log.Info().Msg("stopped; the rules stay in force: admitted flows go on, new ones to isolated pods wait")
	return nil
}

// serve serves health, status and metrics. While two agents overlap the address is the old one's until it ends.
func (a *agent) serve(ctx context.Context) error {
	endpoints := a.endpoints()
	var enforcing time.Time
	for {
		s, err := health.Listen(ctx, endpoints)
		if err == nil {
			return s.Serve(ctx)
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop, so that no address is needed
		}
		if enforcing.IsZero() && a.ready() == nil {
			enforcing = time.Now()
		}
		if !errors.Is(err, unix.EADDRINUSE) || !enforcing.IsZero() && time.Since(enforcing) > addressPatience {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(addressPause):
		}
	}
}

const (
	// addressPatience is how long after taking over an agent waits for the old one to leave the HTTP address.
	addressPatience = 2 * drainPatience
	addressPause    = 20 * time.Millisecond
)

// openFlowLog opens the log and the stream of its lines, and returns what to close after them. Without a file for it
// the log still has readers: the page, and whoever asks for /flows.
func (a *agent) openFlowLog() (io.Closer, error) {
	a.flows = flowstream.NewHub(0, 0)
	// One ring for each judge and one for the settler.
	cfg := flowlog.Config{
		Output: io.Discard, Tee: a.publishFlow, Node: a.cfg.NodeName, Producers: a.cfg.judges() + 1,
	}
	var output io.Closer = io.NopCloser(nil)
	if a.cfg.FlowLog != "" {
		w, err := flowlog.Open(a.cfg.FlowLog, a.cfg.FlowLogRotation)
		if err != nil {
			return nil, fmt.Errorf("%w; choose another file with --flow-log", err)
		}
		cfg.Output, output = w, w
	}
	var err error
	if a.cfg.FlowSocket != "" {
		stream := flowstream.Config{Path: a.cfg.FlowSocket, Hub: a.flows}
		if a.flowStream, err = flowstream.Listen(stream); err != nil {
			return nil, errors.Join(fmt.Errorf("%w; choose another path with --flow-socket", err), output.Close())
		}
	}
	if a.flowLog, err = flowlog.New(cfg); err != nil {
		if a.flowStream != nil {
			a.flowStream.Close()
		}
		return nil, errors.Join(err, output.Close())
	}
	return output, nil
}

// flowLogPatience is how long the end of the agent waits for a log that cannot be written.
const flowLogPatience = 2 * time.Second

func (a *agent) closeFlowLog() {
	ctx, cancel := context.WithTimeout(context.Background(), flowLogPatience)
	defer cancel()
	if err := a.flowLog.Close(ctx); err != nil {
		a.cfg.Log.Warn().Err(err).Msg("the last lines of the flow log are lost")
	}
}

// openKernel checks that the kernel can do what is needed, and that nobody else uses our mark bits.
func (a *agent) openKernel() error {
	var err error
	a.rules, err = ruleset.Open(ruleset.Config{Mask: a.marks})
	if err != nil {
		return err
	}
	if err := a.rules.CheckMask(a.marks); err != nil {
		return fmt.Errorf("%w; choose free bits with --mark-mask", err)
	}
	a.cfg.Log.Info().Str("features", a.rules.Features().String()).Stringer("mark-mask", a.marks).
		Stringer("deny-with", a.cfg.DenyWith).Bool("fail-open", a.cfg.failOpen()).
		Bool("audit", a.cfg.Audit).Str("version", a.cfg.Version).
		Msg("starting")
	return nil
}

func (a *agent) build() error {
	threads := a.cfg.judges()
	a.learned = newLearned(a.cfg.learnedSize(), threads)
	a.publisher = &publisher{}
	a.limiter = newLimiter()
	clock := newClock()
	for i := range threads {
		user := &viewUser{}
		a.publisher.users = append(a.publisher.users, user)
		a.judges = append(a.judges, &judge{
			publisher: a.publisher, user: user, marks: a.marks,
			evaluator: engine.NewEvaluator(pairCache), learned: a.learned.rings[i],
			denied: a.flowLog.Ring(i), audit: a.cfg.Audit, counts: &metrics.Verdicts{}, clock: clock,
			fair: fairness{noisy: a.limiter.ring()},
		})
	}
	a.names = newNames(a.publisher, a.marks, a.cfg.Audit)
	a.settler = &settler{
		servers: a.names.servers,
		log:     a.cfg.Log, marks: a.marks, learned: a.learned, publisher: a.publisher,
		evaluator: engine.NewEvaluator(pairCache), flows: a.flowLog.Ring(threads), clock: clock, wake: make(chan struct{}, 1),
	}
	a.controller = &controller{
		log: a.cfg.Log, marks: a.marks, publisher: a.publisher,
		state:   state.NewWith(engine.Config{Node: a.cfg.NodeName, Audit: a.cfg.Audit}),
		learned: a.learned, settler: a.settler, evaluator: engine.NewEvaluator(pairCache),
		wake: a.wakeQueues, names: a.names, dnsServers: a.cfg.DNSServers, told: told.NewClock(),
	}
	a.settler.rewarm = a.controller.rewarm
	return nil
}

func (a *agent) wakeQueues() {
	for _, q := range *a.queues.Load() {
		q.Wake()
	}
}

// enforce takes the queues, waits for the cluster's state and brings it into force, in this order: rules that divert to
// a queue nobody serves drop what should pass. What an earlier agent's rules divert to the queues waits in them for the
// state. An agent that fails open has nobody wait for it.
func (a *agent) enforce(ctx context.Context) error {
	bank, opened := 0, false
	open := func() (err error) {
		if !opened {
			bank, err = a.openQueues()
			opened = err == nil
		}
		return err
	}
	served := false
	defer func() {
		if opened && !served {
			a.closeQueues()
		}
	}()
	if !a.cfg.failOpen() {
		if err := open(); err != nil {
			return err
		}
	}
	changes, err := a.follow(ctx)
	if err != nil {
		return err
	}
	defer a.unfollow()
	if err := a.openReports(); err != nil {
		return err
	}
	first, err := a.firstBatch(ctx, changes)
	if err != nil {
		return err
	}
	if err := open(); err != nil {
		return err
	}
	if err := a.own(bank); err != nil {
		return err
	}
	defer a.controller.rules.Close()
	defer a.settler.close()
	if err := a.controller.prepare(first); err != nil {
		return err
	}
	served = true
	return a.serveQueues(ctx, changes, first)
}

// serveQueues answers packets and brings the state into force, the first one and all that follow. The queues are
// served before the table is written: from that moment on packets come.
func (a *agent) serveQueues(ctx context.Context, changes *source.Queue, first source.Batch) error {
	// The queues go on for a while when all else ends because another agent has taken over.
	serve, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	queues := *a.queues.Load()
	defer addPlaces(len(queues))()
	for _, q := range queues {
		group.Go(func() error { return q.Run(serve) })
	}
	group.Go(func() error {
		defer stop()
		if err := a.controller.install(ctx, first); err != nil {
			return err
		}
		s := a.controller.status()
		a.cfg.Log.Info().Uint32("generation", s.Generation).Int("policies", s.Policies).
			Int("pods", len(a.controller.subjects)).Uint16("queue", a.firstQueue(a.controller.bank)).Msg("enforcing")
		err := a.follower(ctx, changes)
		if errors.Is(err, ruleset.ErrSuperseded) {
			a.handOver(ctx)
		}
		return err
	})
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-time.After(trimDelay): // not while packets come in that have waited for this agent
			trimMemory()
		}
		return nil
	})
	return group.Wait()
}

// own opens the ruleset as the table's next owner, with the queues of the bank.
func (a *agent) own(bank int) error {
	owner := rand.Uint32N(math.MaxUint32) + 1
	rules, err := ruleset.Open(ruleset.Config{
		Mask: a.marks, QueueFirst: a.firstQueue(bank), QueueCount: uint16(a.cfg.queues()),
		NameQueue: a.nameQueue(bank),
		DenyWith:  a.cfg.DenyWith, FailOpen: a.cfg.failOpen(), Audit: a.cfg.Audit, Owner: owner,
		Features: a.rules.Features(), AllowedSize: uint32(a.cfg.CacheSize), DeniedSize: uint32(a.cfg.CacheSize),
	})
	if err != nil {
		return err
	}
	a.settler.rules = rules
	a.controller.rules, a.controller.owner, a.controller.bank = rules, owner, bank
	return nil
}

// follower follows changes, of the cluster and of the table.
func (a *agent) follower(ctx context.Context, changes *source.Queue) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.settler.run(ctx) })
	group.Go(func() error { return a.controller.run(ctx, changes) })
	group.Go(func() error { return a.controller.hear(ctx, a.names.heard) })
	group.Go(func() error { return a.guard(ctx) })
	group.Go(func() error { return a.limiter.run(ctx, a.controller.rules, a.cfg.Log) })
	if a.cfg.RemoveTaint != "" {
		group.Go(func() error { return a.removeTaint(ctx) })
	}
	if w := a.controller.reporter.Load(); w != nil {
		group.Go(func() error { w.Run(ctx); return nil })
	}
	if a.podEvents != nil {
		group.Go(func() error { a.podEvents.Run(ctx); return nil })
	}
	return group.Wait()
}

// firstBatch waits for the whole state of the cluster.
func (a *agent) firstBatch(ctx context.Context, changes *source.Queue) (source.Batch, error) {
	start, cancel := context.WithTimeout(ctx, a.cfg.StartTimeout)
	defer cancel()
	if err := changes.WaitSynced(start); err != nil {
		if ctx.Err() != nil {
			return source.Batch{}, ctx.Err()
		}
		return source.Batch{}, fmt.Errorf("%s did not deliver the cluster's state within %s; check that it is reachable and "+
			"that the agent may list and watch: %w", a.source.name, a.cfg.StartTimeout, err)
	}
	return changes.Next(start)
}
