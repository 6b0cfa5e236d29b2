package queue

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loop serves the queue until it is told to stop, or fails.
func (q *Queue) loop() error {
	idle := false
	for {
		if q.signals.Load() != 0 {
			s := q.signals.Swap(0)
			if s&signalStop != 0 {
				return nil
			}
			q.held.wakeAll()
		}
		if q.held.list.Len() > 0 {
			if err := q.serveHeld(); err != nil {
				return err
			}
		}
		n, errno := q.receive(idle)
		switch errno {
		case 0:
			idle = false
			if err := q.serve(n); err != nil {
				return err
			}
		case unix.EAGAIN:
			idle = true
		case unix.EINTR:
		case unix.ENOBUFS:
			q.stats.overruns.Add(1)
		default:
			q.stats.receiveErrors.Add(1)
			return fmt.Errorf("receive: %w", errno)
		}
	}
}

// serve handles the n datagrams that were read and answers their packets.
func (q *Queue) serve(n int) error {
	now := Now()
	q.handler.Begin()
	var m message
	for i := range n {
		for b := q.rx.datagram(i); len(b) > 0; {
			b = m.parse(b, q.cfg.Number)
			if err := q.serveMessage(&m, now); err != nil {
				return err
			}
		}
	}
	return q.finish()
}

func (q *Queue) serveMessage(m *message, now int64) error {
	switch m.kind {
	case messagePacket:
		q.tally.packets++
		p := &q.packet
		*p = Packet{ID: m.id, Hook: m.hook, Mark: m.mark, In: m.in, Payload: m.payload, Received: now}
		v := q.handler.Handle(p)
		if v.Kind == Hold {
			if q.held.add(p, now+int64(q.cfg.HoldTime)) {
				q.tally.held++
				return nil
			}
			q.tally.holdFull++
			p.Expired = true
			v = q.handler.Handle(p)
		}
		return q.answer(m.id, v)
	case messageBroken:
		q.tally.malformed++
		if m.hasID {
			return q.answer(m.id, Verdict{Kind: Drop})
		}
	case messageError:
		// A verdict is refused when its packet is gone: the kernel drops what is queued when a device goes down.
		if m.about == msgVerdict && m.errno == unix.ENOENT {
			q.tally.gone++
			return nil
		}
		q.stats.sendErrors.Add(1)
		if m.about == msgConfig || m.errno == unix.ENODEV || m.errno == unix.EPERM {
			return fmt.Errorf("the kernel refused message type %#x: %w", m.about, m.errno)
		}
	}
	return nil
}

// serveHeld handles the held packets whose time is over, and of those that were woken up to one batch: new packets come
// in between.
func (q *Queue) serveHeld() error {
	now := Now()
	if q.held.cursor == none && q.held.nextExpired(now) == none {
		return nil
	}
	q.handler.Begin()
	for range q.cfg.Batch {
		expired := true
		i := q.held.nextExpired(now)
		if i == none {
			expired = false
			if i = q.held.nextWoken(); i == none {
				break
			}
		}
		p := &q.packet
		*p = q.held.list.At(i).packet
		p.Expired = expired
		id := p.ID
		v := q.handler.Handle(p)
		if v.Kind == Hold && !expired {
			continue
		}
		if expired {
			q.tally.expired++
		}
		q.held.remove(i)
		if err := q.answer(id, v); err != nil {
			return err
		}
	}
	return q.finish()
}

// answer adds the verdict to those of the batch.
func (q *Queue) answer(id uint32, v Verdict) error {
	if q.tx.full() {
		if err := q.send(); err != nil {
			return err
		}
	}
	switch v.Kind {
	case Accept:
		q.tally.accepted++
	case Repeat:
		q.tally.repeated++
	case Requeue:
		q.tally.requeued++
	default:
		v.Kind = Drop
		q.tally.dropped++
	}
	q.tx.add(id, v)
	return nil
}

// finish ends a batch: hands the verdicts over, tells the handler, publishes the counts.
func (q *Queue) finish() error {
	if err := q.send(); err != nil {
		return err
	}
	q.handler.End()
	q.stats.publish(&q.tally, q.held.list.Len())
	return nil
}

// sendTries is how often a send is tried that failed for want of memory. A failed send had no effect at all.
const sendTries = 10

func (q *Queue) send() error {
	if len(q.tx.buf) == 0 {
		return nil
	}
	for try := 1; ; try++ {
		errno := q.tx.write(q.fd)
		if errno == 0 {
			return nil
		}
		q.stats.sendErrors.Add(1)
		switch errno {
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			if try < sendTries {
				time.Sleep(time.Millisecond)
				continue
			}
		}
		return fmt.Errorf("send verdicts: %w", errno)
	}
}

// receive reads what is there. If there is nothing, it waits: at first for a moment only, and when nothing came until
// there is a packet, a signal, or the end of a hold. EAGAIN says that there is still nothing.
func (q *Queue) receive(idle bool) (int, unix.Errno) {
	h := &q.held
	if h.cursor != none {
		return q.rx.read(q.fd)
	}
	if !idle && h.list.Len() == 0 {
		return q.rx.doze(q.fd)
	}
	q.stats.waits.Add(1)
	var timeout *unix.Timespec // none: forever
	var left unix.Timespec
	if h.list.Len() > 0 {
		left = unix.NsecToTimespec(max(0, h.list.At(h.list.First()).deadline-Now()))
		timeout = &left
	}
	// Syscall, unlike RawSyscall, tells the scheduler that the thread will sleep, so that its processor can be taken.
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&q.poll)), 1, uintptr(unsafe.Pointer(timeout)),
		0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return q.rx.read(q.fd)
}
