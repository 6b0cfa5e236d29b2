package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// patience is how long a connection or an answer is waited for. It is below the second after which a lost SYN is sent
// again: a lost packet is to be seen, not repaired.
const patience = 900 * time.Millisecond

// Now is CLOCK_MONOTONIC in nanoseconds.
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with a valid clock
	return ts.Nano()
}

// clients is the client's end, with what stays from one job to the next.
type clients struct {
	streams []int // sockets, one for each client of a Stream
}

// client is one thread of a job.
type client struct {
	job *Job
	// stream is the client's connection for a Stream; -1 is none yet.
	stream *int
	result Result
	// next hands out numbers, to all clients.
	next  *atomic.Int64
	start time.Time
	end   time.Time
}

// do does a job of a client's kind with all its threads.
func (p *clients) do(job Job) Result {
	job.Clients = max(job.Clients, 1)
	work, ok := map[string]func(*client) error{
		Connect: (*client).connects, Fire: (*client).fires, Flood: (*client).floods, Request: (*client).requests,
		Stream: (*client).streams, HangUp: (*client).hangsUp,
		Packets: (*client).packets, Flip: (*client).flips,
	}[job.Kind]
	if !ok {
		return Result{Error: fmt.Sprintf("no job of kind %q", job.Kind)}
	}
	var next atomic.Int64
	var all sync.WaitGroup
	for len(p.streams) < job.Clients {
		p.streams = append(p.streams, -1)
	}
	clients := make([]client, job.Clients)
	errs := make([]error, job.Clients)
	gate := make(chan time.Time)
	for i := range clients {
		c := &clients[i]
		c.job, c.next, c.stream = &job, &next, &p.streams[i]
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			c.start = <-gate
			if job.Duration > 0 {
				c.end = c.start.Add(job.Duration)
			}
			errs[i] = work(c)
		})
	}
	start := time.Now()
	for range clients {
		gate <- start
	}
	all.Wait()
	var total Result
	for i := range clients {
		total.Add(&clients[i].result)
	}
	total.Numbers = int(next.Load())
	if total.Elapsed == 0 {
		total.Elapsed = time.Since(start)
	}
	if err := errors.Join(errs...); err != nil {
		total.Error = err.Error()
	}
	return total
}

// Add adds what another job came to, done at the same time by others or afterwards. Elapsed becomes the longer one.
func (r *Result) Add(o *Result) {
	r.Begun += o.Begun
	r.Numbers += o.Numbers
	r.Accepted += o.Accepted
	r.Refused += o.Refused
	r.TimedOut += o.TimedOut
	r.Bytes += o.Bytes
	r.Packets += o.Packets
	r.At = max(r.At, o.At)
	r.Elapsed = max(r.Elapsed, o.Elapsed)
	r.Latency.Merge(o.Latency)
}

func (r *Result) count(o Outcome) {
	r.Begun++
	switch o {
	case Accepted:
		r.Accepted++
	case Refused:
		r.Refused++
	case TimedOut:
		r.TimedOut++
	}
}

// more hands out the number of the next connection, and waits for its turn if there is a bound on their rate.
func (c *client) more() (int, bool) {
	i := int(c.next.Add(1)) - 1
	if c.job.Limit > 0 && i >= c.job.Limit {
		return 0, false
	}
	if c.job.Rate > 0 {
		turn := c.start.Add(time.Duration(i) * time.Second / time.Duration(c.job.Rate))
		if wait := time.Until(turn); wait > 0 {
			time.Sleep(wait)
		}
	}
	if !c.end.IsZero() && time.Now().After(c.end) {
		return 0, false
	}
	return c.job.First + i, true
}

func (c *client) connects() error {
	for {
		i, ok := c.more()
		if !ok {
			return nil
		}
		source, target := c.job.Tuples.At(i)
		outcome, took, err := connect(source, target, patience)
		if err != nil {
			return err
		}
		c.result.count(outcome)
		c.result.Latency.Add(took)
	}
}

// flips opens connections until one comes out as wanted. At is when the call that found it returned.
func (c *client) flips() error {
	for {
		i, ok := c.more()
		if !ok {
			return nil
		}
		source, target := c.job.Tuples.At(i)
		outcome, took, err := connect(source, target, patience)
		if err != nil {
			return err
		}
		c.result.count(outcome)
		if outcome == c.job.Want {
			c.result.At = Now()
			c.result.Latency.Add(took)
			return nil
		}
	}
}

func (c *client) fires() error {
	for {
		i, ok := c.more()
		if !ok {
			return nil
		}
		source, target := c.job.Tuples.At(i)
		fd, err := socket(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, source)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, sockaddr(target))
		_ = unix.Close(fd)
		c.result.Begun++
		if err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect to %s: %w", target, err)
		}
	}
}

func (c *client) floods() error {
	ctx, cancel := context.WithDeadline(context.Background(), c.end)
	defer cancel()
	t := c.job.Tuples
	f := wire.Flood{
		Source: netip.PrefixFrom(t.Sources[0], t.Sources[0].BitLen()), Targets: t.Targets, Interface: "eth0",
		Rate: c.job.Rate,
	}
	var err error
	c.result.Begun, err = f.Run(ctx)
	return err
}

// connect opens one connection and resets it. The duration is that of connect(2) alone.
func connect(source netip.Addr, target netip.AddrPort, wait time.Duration) (Outcome, time.Duration, error) {
	fd, err := socket(unix.SOCK_STREAM, source)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(int64(wait))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return "", 0, fmt.Errorf("set a timeout: %w", err)
	}
	to := sockaddr(target)
	begin := time.Now()
	for {
		err = unix.Connect(fd, to)
		took := time.Since(begin)
		switch errnoOf(err) {
		case 0, unix.EISCONN:
			return Accepted, took, nil
		case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EACCES, unix.EPERM:
			return Refused, took, nil
		case unix.EINPROGRESS, unix.ETIMEDOUT:
			return TimedOut, took, nil
		case unix.EINTR, unix.EALREADY:
		default:
			return "", 0, fmt.Errorf("connect to %s: %w", target, err)
		}
	}
}

// errnoOf is the number of a system call's error, 0 for none.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	_ = errors.As(err, &errno) // nothing else comes from system calls
	return errno
}

// socket opens a socket that close resets, bound to the source without choosing a port yet.
func socket(kind int, source netip.Addr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil && source.IsValid() {
		// The port is chosen by connect, which may share one between destinations (ip(7)).
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err == nil {
			err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(source, 0)))
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("prepare a socket of %s: %w", source, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}
