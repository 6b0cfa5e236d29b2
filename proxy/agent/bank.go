package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// bankStride is the distance between the queue numbers of the two banks, and the largest number of queues in one.
const bankStride = 64

// maxQueues is how many queues of verdicts a bank can have, beside further ones for names and for whole packets.
const (
	maxQueues     = bankStride - furtherQueues
	furtherQueues = 2
)

// An agent serves one of two banks of queue numbers. A new agent takes the bank that is free, so it can have its queues
// open before one transaction turns the packets from the old agent's bank to its own: no packet finds nobody there. The
// old agent hands on what still waits in its bank, and ends.
//
// The kernel lets one process have a queue number, so a bank also keeps any two agents that hold the same generation
// numbers from running at the same time.

// openQueues takes the queues of a free bank. It is the one that the table's rules divert to if the agent that wrote
// them has gone: from here on packets wait, which the kernel has dropped since.
func (a *agent) openQueues() (bank int, err error) {
	last, err := a.rules.Generation()
	if err != nil && !errors.Is(err, ruleset.ErrNotInstalled) {
		return 0, err
	}
	first := bankOf(last, a.marks.Generations())
	for _, bank := range []int{first, 1 - first} {
		var queues []*queue.Queue
		if queues, err = a.openBank(bank); err == nil {
			a.queues.Store(&queues)
			if a.serves(1 - bank) {
				a.cfg.Log.Info().Msg("an agent runs on this node already; taking over from it")
			}
			return bank, nil
		}
		if !errors.Is(err, queue.ErrTaken) {
			return 0, err
		}
	}
	return 0, err
}

// closeQueues gives queues back that never were served.
func (a *agent) closeQueues() {
	for _, q := range *a.queues.Load() {
		q.Close()
	}
}

func (a *agent) firstQueue(bank int) uint16 { return a.cfg.QueueNumber + uint16(bank)*bankStride }

// nameQueue is the number behind those that the rules divert to for verdicts.
func (a *agent) nameQueue(bank int) uint16 { return a.firstQueue(bank) + uint16(a.cfg.queues()) }

// wholeQueue is the number of the queue that shows all of a packet. No rule sends any there: judges do, with those
// whose headers are longer than what they are shown.
func (a *agent) wholeQueue(bank int) uint16 { return a.nameQueue(bank) + 1 }

// serves tells whether some process has queues of the bank.
func (a *agent) serves(bank int) bool {
	stats, err := queue.ReadKernelStats()
	return err == nil && slices.ContainsFunc(stats, func(s queue.KernelStats) bool {
		return s.Number >= a.firstQueue(bank) && s.Number-a.firstQueue(bank) < bankStride
	})
}

func (a *agent) openBank(bank int) ([]*queue.Queue, error) {
	var queues []*queue.Queue
	count := a.cfg.queues()
	configs := make([]queue.Config, 0, count+furtherQueues)
	for i, j := range a.judges[:count] {
		j.whole = a.wholeQueue(bank)
		configs = append(configs, queue.Config{
			Number: a.firstQueue(bank) + uint16(i), Handler: j, FailOpen: a.cfg.failOpen(), HoldTime: a.cfg.HoldTime,
			Processors: processorsOf(i, count),
		})
	}
	configs = append(configs, queue.Config{
		Number: a.nameQueue(bank), Handler: a.names, FailOpen: a.cfg.failOpen(),
		CopyRange: wholeRange, HoldSlots: wholeSlots, Batch: wholeBatch,
	}, queue.Config{
		Number: a.wholeQueue(bank), Handler: a.judges[count], FailOpen: a.cfg.failOpen(), HoldTime: a.cfg.HoldTime,
		CopyRange: wholeRange, HoldSlots: wholeSlots, Batch: wholeBatch,
	})
	for _, cfg := range configs {
		q, err := queue.Open(cfg)
		if err != nil {
			for _, open := range queues {
				open.Close()
			}
			return nil, queueError(cfg.Number, err)
		}
		queues = append(queues, q)
	}
	return queues, nil
}

// Of queues that show all of a packet.
const (
	// wholeRange is how much of a packet is read: all of it. A large one may be several segments that the kernel joined.
	wholeRange = 65531
	// wholeSlots is how many packets are held at once; each may take wholeRange bytes of memory.
	wholeSlots = 128
	wholeBatch = 8
)

// maxProcessors is more than the processors of any machine (CPU_SETSIZE).
const maxProcessors = 1024

// processorsOf lists the processors whose packets go to the queue with the index, see ruleset.Config.QueueCount.
func processorsOf(index, queues int) []int {
	var list []int
	for cpu := index; queues > 1 && cpu < maxProcessors; cpu += queues {
		list = append(list, cpu)
	}
	return list
}

const (
	// drainPatience bounds how long a replaced agent looks after its bank.
	drainPatience = 5 * time.Second
	drainPause    = 20 * time.Millisecond
)

// handOver hands the packets that wait in this agent's bank on to the agent that has taken over. No new ones come: its
// transaction turned them to its own bank.
func (a *agent) handOver(ctx context.Context) {
	a.cfg.Log.Info().Msg("another agent has taken over this node; handing on the packets that still wait here")
	a.publisher.passing.Store(true)
	ruleset.Barrier() // packets that went by the old rule are in the queue now
	a.wakeQueues()
	ctx, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	for quiet := 0; quiet < 2; {
		if a.waiting() == 0 {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-ctx.Done():
			a.cfg.Log.Warn().Int("packets", a.waiting()).Msg("packets that still wait here are dropped")
			return
		case <-time.After(drainPause):
		}
	}
}

// waiting is the number of packets in the agent's queues, those in its hands included.
func (a *agent) waiting() int {
	stats, err := queue.ReadKernelStats()
	if err != nil {
		return 0
	}
	n := 0
	for _, s := range stats {
		if slices.ContainsFunc(*a.queues.Load(), func(q *queue.Queue) bool { return q.Number() == s.Number }) {
			n += int(s.Waiting)
		}
	}
	return n
}

// queueError adds what to do to a failure to open a queue.
func queueError(number uint16, err error) error {
	switch {
	case errors.Is(err, queue.ErrTaken):
		return fmt.Errorf("queue %d is served by another process; if it is not an agent, choose other queues with "+
			"--queue-number: %w", number, err)
	case errors.Is(err, queue.ErrPermission):
		return fmt.Errorf("run as root or with CAP_NET_ADMIN: %w", err)
	case errors.Is(err, queue.ErrUnsupported):
		return fmt.Errorf("enable CONFIG_NETFILTER_NETLINK_QUEUE or load module nfnetlink_queue: %w", err)
	}
	return err
}
