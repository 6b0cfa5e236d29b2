package queue

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
)

// Stats are the counts of one queue since Open, as seen by its loop.
type Stats struct {
	// Packets is how many were received. Each is answered once, or still held, or lost with the queue.
	Packets uint64
	// Dropped, Accepted, Repeated and Requeued are the verdicts given.
	Dropped, Accepted, Repeated, Requeued uint64
	// Held is how many packets have been held, HeldNow how many are now.
	Held    uint64
	HeldNow int
	// Expired is how many held packets were judged because their time was over, HoldFull how many were judged at once
	// because there was no room to hold them.
	Expired, HoldFull uint64
	// Malformed is how many messages of the kernel could not be understood. Their packets are dropped when known, and
	// then count as Dropped but not in Packets.
	Malformed uint64
	// Gone is how many verdicts came too late: the packet had left the queue, as when a device goes down.
	Gone uint64
	// Waits is how often the loop found nothing to do and slept.
	Waits uint64
	// ReceiveErrors, Overruns (the socket's receive buffer was full) and SendErrors are failures of the socket.
	ReceiveErrors, Overruns, SendErrors uint64
}

// counters are written by the loop only and read by anyone.
type counters struct {
	packets, dropped, accepted                 atomic.Uint64
	repeated, requeued                         atomic.Uint64
	held, expired, holdFull                    atomic.Uint64
	malformed, gone                            atomic.Uint64
	waits, receiveErrors, overruns, sendErrors atomic.Uint64
	heldNow                                    atomic.Int64
}

// tally is the counting of one batch: plain numbers, published at its end.
type tally struct {
	packets, dropped, accepted uint64
	repeated, requeued         uint64
	held, expired, holdFull    uint64
	malformed, gone            uint64
}

// publish adds the tally and empties it. What came in is published after what became of it, so that a reader who sees a
// packet counted sees its verdict counted, too.
func (c *counters) publish(t *tally, heldNow int) {
	add(&c.dropped, t.dropped)
	add(&c.accepted, t.accepted)
	add(&c.repeated, t.repeated)
	add(&c.requeued, t.requeued)
	add(&c.held, t.held)
	add(&c.holdFull, t.holdFull)
	add(&c.malformed, t.malformed)
	add(&c.gone, t.gone)
	c.heldNow.Store(int64(heldNow))
	add(&c.expired, t.expired)
	add(&c.packets, t.packets)
	*t = tally{}
}

func add(c *atomic.Uint64, n uint64) {
	if n != 0 {
		c.Add(n)
	}
}

// Stats reads the counts. It may be called at any time, also after Run has returned.
func (q *Queue) Stats() Stats {
	c := &q.stats
	packets := c.packets.Load() // first, as it is published last
	return Stats{
		Packets: packets,
		Dropped: c.dropped.Load(), Accepted: c.accepted.Load(), Repeated: c.repeated.Load(),
		Requeued: c.requeued.Load(),
		Held:     c.held.Load(), HeldNow: int(c.heldNow.Load()),
		Expired: c.expired.Load(), HoldFull: c.holdFull.Load(),
		Malformed: c.malformed.Load(), Gone: c.gone.Load(),
		Waits:         c.waits.Load(),
		ReceiveErrors: c.receiveErrors.Load(), Overruns: c.overruns.Load(), SendErrors: c.sendErrors.Load(),
	}
}

// KernelStats is what the kernel counts for one queue (linux/net/netfilter/nfnetlink_queue.c, seq_show).
type KernelStats struct {
	Number uint16
	// Waiting is how many packets are in the queue now, held ones included.
	Waiting uint32
	// QueueDropped is how many packets found the queue full, UserDropped how many could not be put into the socket's
	// receive buffer. Both count from Open on, in 32 bits. With FailOpen such packets were accepted instead.
	QueueDropped, UserDropped uint32
}

// ReadKernelStats returns what the kernel counts for all queues of the calling thread's network namespace.
func ReadKernelStats() ([]KernelStats, error) {
	b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if err != nil {
		return nil, fmt.Errorf("kernel counts of the queues: %w", err)
	}
	stats, err := parseKernelStats(b)
	if err != nil {
		return nil, fmt.Errorf("kernel counts of the queues: %w", err)
	}
	return stats, nil
}

func parseKernelStats(b []byte) ([]KernelStats, error) {
	var all []KernelStats
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		var s KernelStats
		var port, mode, copyRange uint32
		if _, err := fmt.Sscan(lines.Text(), &s.Number, &port, &s.Waiting, &mode, &copyRange, &s.QueueDropped,
			&s.UserDropped); err != nil {
			return nil, fmt.Errorf("line %q: %w", lines.Text(), err)
		}
		all = append(all, s)
	}
	return all, nil
}
