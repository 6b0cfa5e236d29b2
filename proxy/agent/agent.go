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
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/health"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/metrics"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// Agent is a running agent, put together by Run.
type agent struct {
	cfg   Config
	marks mark.Layout

	rules      *ruleset.Ruleset
	publisher  *publisher
	learned    *learned
	judges     []*judge
	queues     atomic.Pointer[[]*queue.Queue] // nil until they are open
	settler    *settler
	controller *controller
	source     *feed                        // set before changes
	changes    atomic.Pointer[source.Queue] // nil until the source is open
	flowLog    *flowlog.Log
	health     *health.Server
}

// Run enforces until the context ends; then it returns nil and leaves its rules in the kernel. Any other return is an
// error of one sentence that says what to do: without it the agent could not do its job any more.
func Run(ctx context.Context, cfg Config) (err error) {
	a := &agent{cfg: cfg}
	if a.marks, err = cfg.validate(); err != nil {
		return err
	}
	output, err := a.openFlowLog()
	if err != nil {
		return err
	}
	if output != nil {
		defer output.Close()
		defer a.closeFlowLog()
	}
	if err := a.openKernel(); err != nil {
		return err
	}
	if err := a.build(); err != nil {
		return err
	}
	if a.health, err = health.Listen(ctx, a.endpoints()); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.health.Serve(ctx) })
	group.Go(func() error { return a.enforce(ctx) })
	if err := group.Wait(); err != nil {
		return err
	}
	cfg.Log.Info().Msg("stopped; the rules stay in force: admitted flows go on, new ones to isolated pods wait")
	return nil
}

func (a *agent) openFlowLog() (io.Closer, error) {
	if a.cfg.FlowLog == "" {
		return nil, nil
	}
	w, err := flowlog.Open(a.cfg.FlowLog)
	if err != nil {
		return nil, fmt.Errorf("%w; choose another file with --flow-log", err)
	}
	// One ring for each queue thread and one for the settler.
	a.flowLog, err = flowlog.New(flowlog.Config{Output: w, Node: a.cfg.NodeName, Producers: a.cfg.queues() + 1})
	return w, err
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
	a.rules, err = ruleset.Open(ruleset.Config{
		Mask: a.marks, QueueFirst: a.cfg.QueueNumber, QueueCount: uint16(a.cfg.queues()),
		DenyWith: a.cfg.DenyWith, FailOpen: a.cfg.FailOpen,
	})
	if err != nil {
		return err
	}
	if err := a.rules.CheckMask(a.marks); err != nil {
		return fmt.Errorf("%w; choose free bits with --mark-mask", err)
	}
	a.cfg.Log.Info().Str("features", a.rules.Features().String()).Stringer("mark-mask", a.marks).
		Stringer("deny-with", a.cfg.DenyWith).Bool("fail-open", a.cfg.FailOpen).Str("version", a.cfg.Version).
		Msg("starting")
	return nil
}

// learnedSize is how far the kernel's set may fill before the oldest tuples leave: the kernel learns a little ahead of
// userspace.
const learnedSize = ruleset.DefaultSetSize * 9 / 10

func (a *agent) build() error {
	threads := a.cfg.queues()
	var err error
	if a.learned, err = newLearned(learnedSize, threads); err != nil {
		return err
	}
	a.publisher = &publisher{}
	clock := newClock()
	ring := func(i int) *flowlog.Ring {
		if a.flowLog == nil {
			return nil
		}
		return a.flowLog.Ring(i)
	}
	for i := range threads {
		user := &viewUser{}
		a.publisher.users = append(a.publisher.users, user)
		a.judges = append(a.judges, &judge{
			publisher: a.publisher, user: user, marks: a.marks,
			evaluator: engine.NewEvaluator(pairCache), learned: a.learned.rings[i],
			denied: ring(i), counts: &metrics.Verdicts{}, clock: clock,
		})
	}
	a.settler = &settler{
		log: a.cfg.Log, marks: a.marks, rules: a.rules, learned: a.learned,
		evaluator: engine.NewEvaluator(pairCache), flows: ring(threads), clock: clock, wake: make(chan struct{}, 1),
	}
	a.controller = &controller{
		log: a.cfg.Log, marks: a.marks, state: state.New(a.cfg.NodeName), publisher: a.publisher,
		rules: a.rules, learned: a.learned, settler: a.settler, evaluator: engine.NewEvaluator(pairCache),
		wake: a.wakeQueues,
	}
	return nil
}

func (a *agent) wakeQueues() {
	for _, q := range *a.queues.Load() {
		q.Wake()
	}
}

// enforce waits for the cluster's state, takes the queues and brings the state into force, in this order: rules that
// divert to a queue nobody serves would drop what should pass.
func (a *agent) enforce(ctx context.Context) error {
	changes, err := a.follow(ctx)
	if err != nil {
		return err
	}
	defer a.unfollow()
	first, err := a.firstBatch(ctx, changes)
	if err != nil {
		return err
	}
	if err := a.openQueues(); err != nil {
		return err
	}
	if err := a.controller.install(ctx, first); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, q := range *a.queues.Load() {
		group.Go(func() error { return q.Run(ctx) })
	}
	group.Go(func() error { return a.settler.run(ctx) })
	group.Go(func() error { return a.controller.run(ctx, changes) })
	s := a.controller.status()
	a.cfg.Log.Info().Uint32("generation", s.Generation).Int("policies", s.Policies).
		Int("pods", len(a.controller.subjects)).Msg("enforcing")
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

// openQueues takes the queue numbers. From here on the kernel queues what earlier rules divert.
func (a *agent) openQueues() error {
	var queues []*queue.Queue
	for i, j := range a.judges {
		number := a.cfg.QueueNumber + uint16(i)
		q, err := queue.Open(queue.Config{
			Number: number, Handler: j, FailOpen: a.cfg.FailOpen, HoldTime: a.cfg.HoldTime, Spin: a.cfg.Spins,
		})
		if err != nil {
			for _, open := range queues {
				open.Close()
			}
			return queueError(number, err)
		}
		queues = append(queues, q)
	}
	a.queues.Store(&queues)
	return nil
}

// queueError adds what to do to a failure to open a queue.
func queueError(number uint16, err error) error {
	switch {
	case errors.Is(err, queue.ErrTaken):
		return fmt.Errorf("queue %d is served by another process; stop the other agent on this node, or choose other "+
			"queues with --queue-number: %w", number, err)
	case errors.Is(err, queue.ErrPermission):
		return fmt.Errorf("run as root or with CAP_NET_ADMIN: %w", err)
	case errors.Is(err, queue.ErrUnsupported):
		return fmt.Errorf("enable CONFIG_NETFILTER_NETLINK_QUEUE or load module nfnetlink_queue: %w", err)
	}
	return err
}
