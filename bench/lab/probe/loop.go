package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/serve"
)

const (
	// inFlight bounds the open sockets of one thread.
	inFlight = 1024
	// burst is how many probes are sent before answers are looked for, so that latencies stay honest.
	burst = 16
	// patience bounds how long the loop sleeps without looking at its context.
	patience = 50 * time.Millisecond
)

// attempt is one probe under way.
type attempt struct {
	index int
	sent  time.Time
	// deadline is when the next sign of life is due.
	deadline time.Time
	received []byte
}

// loop is one thread's share of the probes.
type loop struct {
	ctx     context.Context
	probes  []Probe
	results []Result
	epoll   int
	current *ns.Namespace
	open    map[int]*attempt // by socket
	// nearest is not later than the earliest deadline of the open attempts.
	nearest time.Time
	events  []unix.EpollEvent
	buf     []byte
}

func newLoop(ctx context.Context, probes []Probe, results []Result) *loop {
	return &loop{
		ctx: ctx, probes: probes, results: results, open: make(map[int]*attempt),
		events: make([]unix.EpollEvent, 128), buf: make([]byte, 2048),
	}
}

// run sends the probes with these indexes and waits for their results.
func (l *loop) run(part []int) (err error) {
	done := make(chan error, 1)
	// The goroutine is the thread's: if it cannot be brought home it ends with it.
	go func() {
		runtime.LockOSThread()
		err := l.work(part)
		if back := ns.Leave(); back != nil {
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func (l *loop) work(part []int) (err error) {
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	defer func() {
		for fd := range l.open {
			_ = unix.Close(fd)
		}
		_ = unix.Close(l.epoll)
	}()
	for len(part) > 0 || len(l.open) > 0 {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		for range min(burst, inFlight-len(l.open), len(part)) {
			if err := l.start(part[0]); err != nil {
				return err
			}
			part = part[1:]
		}
		wait := time.Duration(0)
		if len(part) == 0 || len(l.open) == inFlight {
			wait = min(max(time.Until(l.nearest), 0), patience)
		}
		if err := l.poll(wait); err != nil {
			return err
		}
		l.expire(time.Now())
	}
	return nil
}

// start sends one probe. What the kernel refuses at once is a result, not an error.
func (l *loop) start(index int) error {
	p := &l.probes[index]
	if l.current != p.From {
		if err := p.From.Enter(); err != nil {
			return err
		}
		l.current = p.From
	}
	fd, err := l.socket(p)
	if err != nil {
		l.results[index] = Result{Outcome: Failed, Err: err}
		return nil //nolint:nilerr // a socket that cannot be had is the result of this probe only
	}
	a := &attempt{index: index, sent: time.Now()}
	l.open[fd] = a
	l.extend(a)
	err = unix.Connect(fd, sockaddr(p.To))
	if err == nil && p.Proto == UDP {
		_, err = unix.Write(fd, []byte{'?'})
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		l.fail(fd, a, err)
		return nil
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if p.Proto == TCP {
		event.Events = unix.EPOLLOUT
	}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// socket opens the probe's socket, bound if it asks for it.
func (l *loop) socket(p *Probe) (int, error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if p.To.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if p.Proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if p.Proto == TCP {
		// Closing resets the connection: a probe leaves no TIME_WAIT behind to run out of ports by.
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	if err == nil && (p.Source.Addr().IsValid() || p.Source.Port() != 0) {
		source := p.Source
		if !source.Addr().IsValid() {
			source = netip.AddrPortFrom(unspecified(p.To.Addr()), source.Port())
		}
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
			err = unix.Bind(fd, sockaddr(source))
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("prepare socket: %w", err)
	}
	return fd, nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// extend gives the attempt its full wait from now on.
func (l *loop) extend(a *attempt) {
	wait := l.probes[a.index].Wait
	if wait == 0 {
		wait = DefaultWait
	}
	a.deadline = time.Now().Add(wait)
	if len(l.open) == 1 || a.deadline.Before(l.nearest) {
		l.nearest = a.deadline
	}
}

func (l *loop) poll(wait time.Duration) error {
	// Rounded up: a deadline that is less than a millisecond away must not turn into a busy loop.
	n, err := unix.EpollWait(l.epoll, l.events, int((wait+time.Millisecond-1)/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("epoll_wait: %w", err)
	}
	now := time.Now()
	for _, event := range l.events[:n] {
		fd := int(event.Fd)
		if a, ok := l.open[fd]; ok {
			if err := l.progress(fd, a, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// progress takes the next step of an attempt whose socket has news.
func (l *loop) progress(fd int, a *attempt, now time.Time) error {
	p, r := &l.probes[a.index], &l.results[a.index]
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("read SO_ERROR: %w", err)
	}
	if errno != 0 {
		l.fail(fd, a, unix.Errno(errno))
		return nil
	}
	if p.Proto == TCP && !r.Connected {
		r.Connected, r.Latency = true, now.Sub(a.sent)
		l.extend(a)
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &event); err != nil {
			return fmt.Errorf("epoll_ctl: %w", err)
		}
		return nil
	}
	n, err := unix.Read(fd, l.buf)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		l.fail(fd, a, err)
		return nil
	}
	a.received = append(a.received, l.buf[:n]...)
	banner, _, ok := serve.ParseBanner(a.received)
	if !ok {
		if n == 0 || p.Proto == UDP || len(a.received) > serve.MaxDatagram {
			l.finish(fd, a, Failed, fmt.Errorf("unknown answer %.40q", a.received))
		}
		return nil
	}
	r.By, r.Seen = banner.Name, banner.Client
	if p.Proto == UDP {
		r.Latency = now.Sub(a.sent)
	}
	l.finish(fd, a, Reached, nil)
	return nil
}

// fail ends an attempt by an error of the kernel: what the network, or a filter on the way out, said is a refusal.
func (l *loop) fail(fd int, a *attempt, err error) {
	outcome := Failed
	if isRefusal(err) {
		outcome = Refused
	}
	l.finish(fd, a, outcome, err)
}

// isRefusal tells errors that come from a reset, from ICMP or from a filter on the way out.
func isRefusal(err error) bool {
	for _, errno := range []error{
		unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.EACCES, unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT,
		unix.EPIPE, unix.ENETUNREACH,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func (l *loop) finish(fd int, a *attempt, outcome Outcome, err error) {
	r := &l.results[a.index]
	r.Outcome, r.Err = outcome, err
	delete(l.open, fd)
	// Closing alone would leave the socket in the set for as long as a process that is just being forked holds it.
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	_ = unix.Close(fd)
}

// expire ends the attempts whose time is over.
func (l *loop) expire(now time.Time) {
	if now.Before(l.nearest) {
		return
	}
	l.nearest = now.Add(time.Hour)
	for fd, a := range l.open {
		if !now.Before(a.deadline) {
			l.finish(fd, a, Silent, nil)
		} else if a.deadline.Before(l.nearest) {
			l.nearest = a.deadline
		}
	}
}
