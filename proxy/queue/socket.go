package queue

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiver reads datagrams, one netlink message each, several with one call. Against one read and one send for each
// packet (a Batch of 1 in BenchmarkConnect), eight clients get 1.4 times the rate, and a single one loses nothing:
// the second, empty look within the call costs less than the call.
type receiver struct {
	memory  []byte
	size    int // of one datagram
	headers []unix.Mmsghdr
	vectors []unix.Iovec
}

func newReceiver(batch, copyRange int) receiver {
	size := align(copyRange + messageOverhead)
	r := receiver{
		memory:  make([]byte, batch*size),
		size:    size,
		headers: make([]unix.Mmsghdr, batch),
		vectors: make([]unix.Iovec, batch),
	}
	for i := range batch {
		r.vectors[i].Base = &r.memory[i*size]
		r.vectors[i].SetLen(size)
		r.headers[i].Hdr.Iov = &r.vectors[i]
		r.headers[i].Hdr.SetIovlen(1)
	}
	return r
}

// read reads what is there, without waiting, and returns the number of datagrams, or EAGAIN for none.
//
// RawSyscall does not tell the scheduler, which is right for a call that never sleeps and takes a microsecond: it saves
// the bookkeeping, and the thread cannot lose its processor in the middle and have to queue for one again.
func (r *receiver) read(fd int) (int, unix.Errno) { return r.receive(fd, unix.MSG_DONTWAIT) }

// doze waits for the first datagram, but only for a moment (see setDoze), and reads what is there then; EAGAIN says
// that there was nothing.
//
// Other than for a longer sleep, the scheduler is not told. It would take the thread's place among the running ones
// away after some 20 us, wake up its monitor thread when the next packet comes, and have the two meet: that costs more
// than a verdict. Package agent adds places for the threads of queues. A collection of garbage that wants all threads
// to stop sends a signal, which ends the call.
func (r *receiver) doze(fd int) (int, unix.Errno) { return r.receive(fd, unix.MSG_WAITFORONE) }

func (r *receiver) receive(fd, flags int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.headers[0])),
		uintptr(len(r.headers)), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// dozeTime is long beside the time between two packets of one busy client, and short beside that after which Go's
// scheduler would wonder about a thread (10 ms).
const dozeTime = 2 * time.Millisecond

// setDoze bounds the time that doze waits. With a bound, a signal ends the call, instead of having it begin anew
// (signal(7)).
func setDoze(fd int) error {
	t := unix.NsecToTimeval(int64(dozeTime))
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
}

// datagram is the i-th of those read last. One longer than expected is cut, and found broken by its own length.
func (r *receiver) datagram(i int) []byte {
	start := i * r.size
	return r.memory[start : start+int(r.headers[i].Len)]
}

// sender gathers the verdicts of a batch.
type sender struct {
	number uint16
	buf    []byte
}

func newSender(number uint16, batch int) sender {
	return sender{number: number, buf: make([]byte, 0, batch*verdictMarkLen)}
}

func (s *sender) full() bool { return cap(s.buf)-len(s.buf) < verdictMarkLen }

func (s *sender) add(id uint32, v Verdict) { s.buf = appendVerdict(s.buf, s.number, id, v) }

// write hands the verdicts to the kernel and, when that worked, starts over. Without an address netlink sends to
// the kernel.
//
// The kernel processes them within the call, and for each packet its whole way from the hook on: through the stack,
// over a veth, into the receiver's socket and back with the reply. That may take long for a batch, so Syscall tells
// the scheduler: with RawSyscall a collection of garbage would have to wait for it, and with it the whole process.
func (s *sender) write(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&s.buf[0])), uintptr(len(s.buf)))
	if errno == 0 {
		s.buf = s.buf[:0]
	}
	return errno
}
