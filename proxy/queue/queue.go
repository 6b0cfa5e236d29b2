// Package queue reads packets that the kernel diverted to an NFQUEUE and gives their verdicts back: the hot loop
// between the kernel and the policy engine.
//
// One Queue serves one queue number with one OS thread and one netlink socket. Its loop reads several packets with
// one system call into buffers that it reuses, asks the Handler, and hands all verdicts over with one system call.
// It takes no lock and allocates nothing. Before it blocks it looks a bounded number of times for more, since the
// wake-up of a sleeping thread costs more than all the work on a packet.
//
// A packet whose verdict has to wait (its addresses are not known yet) is held: its bytes stay in a bounded list
// and the packet stays in the kernel, until Wake has it judged again or its time is over.
//
// Everything fails closed: a packet that the loop could not read or understand is dropped when its id is known and
// otherwise stays in the kernel unanswered; when the loop ends, the kernel drops what is still queued.
package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Kind is what becomes of a packet. Values not listed here count as Drop, and so does the zero Kind.
type Kind uint8

const (
	// Drop discards the packet.
	Drop Kind = iota
	// Accept lets the packet go on behind the hook.
	Accept
	// Repeat runs the packet through the hook once more, with a new packet mark.
	Repeat
	// Hold keeps the packet, to be handled again after Wake or when its time is over.
	Hold
	// Requeue hands the packet on to another queue, at the same hook. If nobody serves that one, the packet is dropped.
	Requeue
)

// Verdict is the answer to one packet.
type Verdict struct {
	Kind Kind
	// Mark is the whole new packet mark (skb->mark) of a Repeat. It is not used with other kinds.
	Mark uint32
	// Queue is the number of the queue that a Requeue means.
	Queue uint16
}

// Packet is one queued packet. It and its Payload are valid during Handle only.
type Packet struct {
	// ID is the kernel's number of the packet in this queue.
	ID uint32
	// Hook is the netfilter hook that queued it: NF_INET_LOCAL_IN, NF_INET_FORWARD, … (linux/netfilter.h).
	Hook uint8
	// Mark is the packet mark (skb->mark).
	Mark uint32
	// In is the index of the interface that it came in by; 0 for the host's own packets.
	In uint32
	// Payload starts at the IP header and has at most the configured number of bytes; the packet may be longer.
	Payload []byte
	// Held: the packet was held, and this is not the first time it is handled.
	Held bool
	// Expired: it cannot be held any longer (its time is over, or there was no room); the answer Hold is a Drop.
	Expired bool
	// Received is when it was read first, on the clock of Now.
	Received int64
}

// Handler judges the packets of one queue. All its methods are called on the thread of that queue only. They must
// neither block nor allocate.
type Handler interface {
	// Begin comes before the packets of a batch.
	Begin()
	// Handle judges one packet.
	Handle(p *Packet) Verdict
	// End comes after the kernel has processed all verdicts of the batch, including the way that accepted and repeated
	// packets take from there: nothing of what was decided since Begin is still to happen.
	End()
}

// Defaults of Config.
const (
	DefaultMaxLen        = 4096
	DefaultCopyRange     = 256
	DefaultReceiveBuffer = 4 << 20
	DefaultBatch         = 32
	DefaultHoldSlots     = 1024
	DefaultHoldTime      = time.Second
)

// Config says how to open a queue. All but Handler may be left zero.
type Config struct {
	// Number is the queue number in the network namespace of the thread that calls Open.
	Number uint16
	// Handler judges the packets. Required.
	Handler Handler
	// Processors are the numbers of those whose packets the rules send to this queue. Its thread runs on these alone:
	// where the sender of a packet waits for its connection, its processor is free for the verdict, and none has to be
	// woken up. None given, or none that the process may use, lets the thread run anywhere.
	Processors []int
	// FailOpen has the kernel accept packets that do not fit into the queue, instead of dropping them.
	FailOpen bool
	// MaxLen is how many packets wait in the kernel at most, held ones included (default DefaultMaxLen).
	MaxLen int
	// CopyRange is how many bytes of a packet the kernel copies (default DefaultCopyRange). It has to reach the ports
	// behind IPv4 options and IPv6 extension headers; where it may not, the handler requeues to a queue with a larger one.
	CopyRange int
	// ReceiveBuffer is the size of the socket's receive buffer in bytes, which the kernel doubles for its own overhead
	// (default DefaultReceiveBuffer). Without CAP_NET_ADMIN on the host it is limited by net.core.rmem_max.
	ReceiveBuffer int
	// Batch is how many packets are read and answered together at most (default DefaultBatch).
	Batch int
	// HoldSlots is how many packets are held at most (default DefaultHoldSlots; negative: none). Each costs CopyRange
	// bytes and a step in the list that the kernel goes through to find an answered packet: up to the default, that is
	// lost in the noise of BenchmarkHeld.
	HoldSlots int
	// HoldTime is how long a packet is held at most (default DefaultHoldTime).
	HoldTime time.Duration
}

// withDefaults returns the configuration with defaults filled in, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	fill := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	fill(&c.MaxLen, DefaultMaxLen)
	fill(&c.CopyRange, DefaultCopyRange)
	fill(&c.ReceiveBuffer, DefaultReceiveBuffer)
	fill(&c.Batch, DefaultBatch)
	fill(&c.HoldSlots, DefaultHoldSlots)
	c.HoldSlots = max(c.HoldSlots, 0)
	if c.HoldTime == 0 {
		c.HoldTime = DefaultHoldTime
	}
	switch {
	case c.Handler == nil:
		return c, errors.New("no handler")
	case c.MaxLen < 1 || c.MaxLen <= c.HoldSlots:
		return c, fmt.Errorf("maximum length %d leaves no room beside %d held packets", c.MaxLen, c.HoldSlots)
	case c.CopyRange < minCopyRange || c.CopyRange > maxCopyRange:
		return c, fmt.Errorf("copy range %d is not within %d..%d", c.CopyRange, minCopyRange, maxCopyRange)
	case c.ReceiveBuffer < 0 || c.ReceiveBuffer > 1<<30:
		return c, fmt.Errorf("receive buffer of %d bytes is not within 0..%d", c.ReceiveBuffer, 1<<30)
	case c.Batch < 1 || c.Batch > maxBatch:
		return c, fmt.Errorf("batch %d is not within 1..%d", c.Batch, maxBatch)
	case c.HoldTime < 0:
		return c, fmt.Errorf("hold time %v is negative", c.HoldTime)
	}
	return c, nil
}

const (
	minCopyRange = 60    // an IPv4 header with all options
	maxCopyRange = 65531 // NFQNL_MAX_COPY_RANGE (linux/net/netfilter/nfnetlink_queue.c)
	maxBatch     = 1024  // UIO_MAXIOV, the limit of recvmmsg
)

// The reasons why a queue cannot be opened. The errors returned match these and the kernel's errno with errors.Is.
var (
	// ErrTaken: another socket serves this queue number.
	ErrTaken = errors.New("queue number is taken by another process")
	// ErrUnsupported: the kernel has no NFQUEUE (nfnetlink_queue).
	ErrUnsupported = errors.New("kernel does not support NFQUEUE")
	// ErrPermission: the thread lacks CAP_NET_ADMIN in the user namespace of its network namespace.
	ErrPermission = errors.New("no permission to use NFQUEUE (CAP_NET_ADMIN)")
)

// Queue is an open queue. Its number is taken from Open until Run returns, or until Close when it never ran.
type Queue struct {
	cfg     Config
	handler Handler

	fd   int // netlink socket, not known to Go's poller
	poll unix.PollFd

	rx    receiver
	tx    sender
	held  holdList
	tally tally
	stats counters

	packet Packet // the one being handled; a local one would go to the heap, as the handler may be anything

	// signals gathers what others want of the loop, which is woken when a bit appears.
	signals atomic.Uint32
	started atomic.Bool

	mu     sync.Mutex // guards fd in signal against use after close; not taken by the loop
	closed bool
}

const (
	signalWake = 1 << iota
	signalStop
)

// Open takes the queue number in the calling thread's network namespace. From here on the kernel queues packets.
func Open(cfg Config) (*Queue, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure queue %d: %w", cfg.Number, err)
	}
	fd, err := bind(&cfg)
	if err != nil {
		return nil, fmt.Errorf("open queue %d: %w", cfg.Number, err)
	}
	q := &Queue{
		cfg:     cfg,
		handler: cfg.Handler,
		fd:      fd,
		poll:    unix.PollFd{Fd: int32(fd), Events: unix.POLLIN},
		rx:      newReceiver(cfg.Batch, cfg.CopyRange),
		tx:      newSender(cfg.Number, cfg.Batch),
	}
	q.held.init(cfg.HoldSlots, cfg.CopyRange)
	return q, nil
}

// Run serves the queue on an OS thread of its own until ctx ends (then it returns nil) or until the queue cannot be
// served any more. It closes the queue; packets still queued are dropped by the kernel. It can be called once.
func (q *Queue) Run(ctx context.Context) error {
	if q.started.Swap(true) {
		return fmt.Errorf("run queue %d: it ran before or is closed", q.cfg.Number)
	}
	defer q.close()
	stop := context.AfterFunc(ctx, func() { q.signal(signalStop) })
	defer stop()
	runtime.LockOSThread() // for good: nobody else shall have a thread that is bound to processors
	q.pin()
	if err := q.loop(); err != nil {
		return fmt.Errorf("run queue %d: %w", q.cfg.Number, err)
	}
	return nil
}

// pin binds the thread to the queue's processors. That it cannot be is no failure: a cpuset may leave none of them.
func (q *Queue) pin() {
	var set unix.CPUSet
	for _, cpu := range q.cfg.Processors {
		set.Set(cpu)
	}
	if set.Count() > 0 {
		_ = unix.SchedSetaffinity(0, &set)
	}
}

// Wake has all packets that are held now handled again, soon and on the queue's thread: what they wait for may be
// known. It may be called from anywhere at any time, and does not wait.
func (q *Queue) Wake() { q.signal(signalWake) }

// Close gives the number back when Run was not called; else it does nothing, since Run closes the queue by itself.
func (q *Queue) Close() {
	if !q.started.Swap(true) {
		q.close()
	}
}

// Number is the queue number.
func (q *Queue) Number() uint16 { return q.cfg.Number }

// signal tells the loop. A message that does nothing but ask for an acknowledgement wakes it: the kernel's answer comes
// to the same socket as the packets, so that the loop has one thing to wait for.
func (q *Queue) signal(bit uint32) {
	if q.signals.Or(bit)&bit != 0 {
		return // the one who set it sends, or the loop saw it
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for try := 0; !q.closed && try < sendTries; try++ {
		if _, err := unix.Write(q.fd, wakeMessage); err == nil {
			return
		}
		time.Sleep(time.Millisecond) // want of memory
	}
}

func (q *Queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	_ = unix.Close(q.fd)
}

// epoch is the zero of Now.
var epoch = time.Now()

// Now reads the monotonic clock that Packet.Received is on, in nanoseconds.
func Now() int64 { return int64(time.Since(epoch)) }
