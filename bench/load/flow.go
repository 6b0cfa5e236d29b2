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

// streams connects and then sends until the time is over.
func (c *client) streams() error {
	fd, err := c.open(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, streamSize)
	begin := time.Now()
	for time.Since(begin) < c.job.Duration {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		c.result.Bytes += uint64(n)
	}
	// To the last byte: the server closes when it has read it.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if n > 0 || err != nil {
			return fmt.Errorf("wait for the end: %d bytes: %w", n, err)
		}
		break
	}
	c.result.Elapsed = time.Since(begin)
	return nil
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
