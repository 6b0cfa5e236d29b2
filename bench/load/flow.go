package load

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// requests makes UDP flows: Parallel datagrams from one socket, to be answered each.
func (c *client) requests() error {
	parallel := max(c.job.Parallel, 1)
	for {
		i, ok := c.more()
		if !ok {
			return nil
		}
		source, target := c.job.Tuples.At(i)
		fd, err := socket(unix.SOCK_DGRAM, source)
		if err != nil {
			return err
		}
		outcome, took, err := request(fd, sockaddr(target), parallel)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("request to %s: %w", target, err)
		}
		c.result.count(outcome)
		c.result.Latency.Add(took)
	}
}

func request(fd int, to unix.Sockaddr, parallel int) (Outcome, time.Duration, error) {
	limit := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return "", 0, err
	}
	begin := time.Now()
	if err := unix.Connect(fd, to); err != nil {
		return "", 0, err
	}
	var b [64]byte
	for range parallel {
		if _, err := unix.Write(fd, b[:32]); err != nil {
			return refusal(err, begin)
		}
	}
	for range parallel {
		for {
			_, err := unix.Read(fd, b[:])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return refusal(err, begin)
			}
			break
		}
	}
	return Accepted, time.Since(begin), nil
}

func refusal(err error, begin time.Time) (Outcome, time.Duration, error) {
	switch errnoOf(err) {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EACCES, unix.EPERM:
		return Refused, time.Since(begin), nil
	case unix.EAGAIN:
		return TimedOut, time.Since(begin), nil
	}
	return "", 0, err
}

// streamSize is what a Stream hands to the kernel in one call.
const streamSize = 128 << 10

// streams sends until the time is over, and waits until the other side's kernel has it all.
func (c *client) streams() error {
	if *c.stream < 0 {
		fd, err := c.open(unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		*c.stream = fd
	}
	b := make([]byte, streamSize)
	begin := time.Now()
	for time.Since(begin) < c.job.Duration {
		n, err := unix.Write(*c.stream, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		c.result.Bytes += uint64(n)
	}
	for {
		// What is not acknowledged yet (SIOCOUTQ, tcp(7)).
		n, err := unix.IoctlGetInt(*c.stream, unix.SIOCOUTQ)
		if err != nil {
			return fmt.Errorf("ask for what is on its way: %w", err)
		}
		if n == 0 {
			break
		}
		if time.Since(begin) > c.job.Duration+patience {
			return fmt.Errorf("%d bytes are not acknowledged after %s", n, patience)
		}
		time.Sleep(ackPause)
	}
	c.result.Elapsed = time.Since(begin)
	return nil
}

// ackPause is how often a client asks whether all is acknowledged.
const ackPause = 20 * time.Microsecond

// hangsUp ends the client's stream and waits until the server has read it all, if there is one.
func (c *client) hangsUp() error {
	if *c.stream < 0 {
		return nil
	}
	defer func() {
		_ = unix.Close(*c.stream)
		*c.stream = -1
	}()
	// To the last byte: the server closes when it has read it.
	if err := unix.SetsockoptLinger(*c.stream, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if err := unix.Shutdown(*c.stream, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	var b [1]byte
	for {
		n, err := unix.Read(*c.stream, b[:])
		if err == unix.EINTR {
			continue
		}
		if n > 0 || err != nil {
			return fmt.Errorf("wait for the end: %d bytes: %w", n, err)
		}
		return nil
	}
}

// open connects a socket to the client's next tuple.
func (c *client) open(kind int) (int, error) {
	i := int(c.next.Add(1)) - 1 + c.job.First
	source, target := c.job.Tuples.At(i)
	fd, err := socket(kind, source)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(target)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", target, err)
	}
	c.result.count(Accepted)
	return fd, nil
}

const (
	// packetBatch is the number of datagrams in one call, packetSize their payload.
	packetBatch = 32
	packetSize  = 32
)

// packets sends datagrams of one flow, which the first one of it has established.
func (c *client) packets() error {
	fd, err := c.open(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	payload := make([]byte, packetSize)
	if _, err := unix.Write(fd, payload); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	c.result.Packets++
	// Until it is judged, the flow is not established.
	time.Sleep(20 * time.Millisecond)
	vectors := make([]unix.Iovec, packetBatch)
	headers := make([]unix.Mmsghdr, packetBatch)
	for i := range headers {
		vectors[i].Base = &payload[0]
		vectors[i].SetLen(packetSize)
		headers[i].Hdr.Iov = &vectors[i]
		headers[i].Hdr.SetIovlen(1)
	}
	begin := time.Now()
	for time.Since(begin) < c.job.Duration {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])),
			packetBatch, 0, 0, 0)
		switch errno {
		case 0:
			c.result.Packets += uint64(n)
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		default:
			return fmt.Errorf("send: %w", errno)
		}
	}
	c.result.Elapsed = time.Since(begin)
	return nil
}
