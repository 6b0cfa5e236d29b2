// Package conntrack reads the kernel's connection tracking table and changes marks in it, through ctnetlink.
//
// It exists for revocation: after a policy change the agent goes through the flows that carry its mark, asks policy
// about each anew, and marks those that are no longer allowed. Tables hold hundreds of thousands of flows, so a dump
// makes no garbage per flow, and marks are changed in batches that the kernel answers once.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// linux/netfilter/nfnetlink_conntrack.h
const (
	msgNew = unix.NFNL_SUBSYS_CTNETLINK << 8   // IPCTNL_MSG_CT_NEW: without NLM_F_CREATE it changes an entry
	msgGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
)

const (
	// batch is how many marks one send changes. Should every one of its flows be gone, the answers must fit into a
	// receive buffer of default size: about 1 KiB each, as the kernel accounts them.
	batch = 128
	// receiveBuffer is asked for, so that a dump goes on while its reader is busy; bytes.
	receiveBuffer = 4 << 20
	// pageSize holds the largest piece of a dump: the kernel fills what the reader offers, up to 32 KiB
	// (netlink_recvmsg, max_recvmsg_len).
	pageSize = 64 << 10
	// patience bounds the wait for one answer of the kernel.
	patience = 30 * time.Second
)

// ErrPermission says that the process may not read the conntrack table.
var ErrPermission = errors.New("no permission to use conntrack; run as root or with CAP_NET_ADMIN")

// Conn is a ctnetlink socket. It is for one goroutine at a time.
type Conn struct {
	nl  *netlink.Conn
	raw syscall.RawConn
	seq uint32
	// in and out are reused by every operation; flow is what Dump hands out.
	in, out []byte
	flow    Flow
	// received and its results belong to receive: a closure made once costs no allocation each time.
	received func(fd uintptr) bool
	n        int
	err      error
}

// Open opens a socket in the network namespace of the file descriptor; 0 means the one of the calling thread.
func Open(netns int) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("conntrack: open netlink: %w", err)
	}
	c := &Conn{nl: nl, in: make([]byte, pageSize)}
	if err := c.prepare(); err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("conntrack: %w", err)
	}
	return c, nil
}

func (c *Conn) prepare() error {
	// Errors come without a copy of the message they are about.
	if err := c.nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		return fmt.Errorf("NETLINK_CAP_ACK: %w", err)
	}
	if err := c.nl.SetReadBuffer(receiveBuffer); err != nil {
		return fmt.Errorf("receive buffer: %w", err)
	}
	var err error
	if c.raw, err = c.nl.SyscallConn(); err != nil {
		return err
	}
	c.received = func(fd uintptr) bool {
		c.n, _, c.err = unix.Recvfrom(int(fd), c.in, 0)
		return !errors.Is(c.err, unix.EAGAIN) && !errors.Is(c.err, unix.EINTR)
	}
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.nl.Close() }

// Filter selects flows in the kernel: those whose mark, under Mask, is Mark. The zero Filter selects all.
type Filter struct{ Mark, Mask uint32 }

// Dump calls each for every flow of both address families, until it returns false. The flow is valid during the call
// only; copy it to keep it. Flows that come or go meanwhile may be left out, or in some cases be seen twice.
func (c *Conn) Dump(f Filter, each func(*Flow) bool) error {
	c.begin()
	m := c.message(msgGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, unix.AF_UNSPEC)
	if f.Mask != 0 {
		c.attr32(ctaMark, f.Mark)
		c.attr32(ctaMarkMask, f.Mask)
	}
	c.end(m)
	if err := c.send(); err != nil {
		return fmt.Errorf("conntrack: dump: %w", err)
	}
	more, done := true, false
	for !done {
		if err := c.receive(); err != nil {
			return fmt.Errorf("conntrack: dump: %w", err)
		}
		for b := c.in[:c.n]; ; {
			h, body, rest, ok := next(b)
			if !ok {
				break
			}
			b = rest
			switch {
			case h.seq != c.seq:
			case h.kind == unix.NLMSG_DONE:
				if err := status(body); err != nil {
					return fmt.Errorf("conntrack: dump: %w", err)
				}
				done = true
			case h.kind == unix.NLMSG_ERROR:
				return fmt.Errorf("conntrack: dump: %w", status(body))
			case h.kind == msgNew && more && len(body) >= genmsgSize:
				if c.flow.decode(body[genmsgSize:]) {
					more = each(&c.flow) // when it wants no more, the rest of the dump is still to be read
				}
			}
		}
	}
	return nil
}

// SetMarks changes the marks of flows, as Dump gave them: the bits under mask become value's, other bits stay. It
// returns how many flows it changed. Flows that have ended meanwhile are none, and no error; on an error it goes on to
// the end of the batch of up to 128 flows and returns.
func (c *Conn) SetMarks(flows []Flow, value, mask uint32) (changed int, err error) {
	for len(flows) > 0 {
		n := min(batch, len(flows))
		gone, err := c.setMarks(flows[:n], value&mask, mask)
		changed += n - gone
		if err != nil {
			return changed, fmt.Errorf("conntrack: set marks: %w", err)
		}
		flows = flows[n:]
	}
	return changed, nil
}

// setMarks sends one batch. Only its last message asks for an answer; the kernel answers the others when they fail.
func (c *Conn) setMarks(flows []Flow, value, mask uint32) (gone int, err error) {
	c.begin()
	first := c.seq
	for i := range flows {
		flags := uint16(unix.NLM_F_REQUEST)
		if i == len(flows)-1 {
			flags |= unix.NLM_F_ACK
		}
		f := &flows[i]
		m := c.message(msgNew, flags, f.family())
		c.encodeKey(f)
		c.attr32(ctaMark, value)
		c.attr32(ctaMarkMask, mask)
		c.end(m)
		c.seq++
	}
	c.seq--
	if err := c.send(); err != nil {
		return len(flows), err
	}
	for answered := false; !answered; {
		if err := c.receive(); err != nil {
			return gone, err
		}
		for b := c.in[:c.n]; ; {
			h, body, rest, ok := next(b)
			if !ok {
				break
			}
			b = rest
			if h.kind != unix.NLMSG_ERROR || h.seq-first >= uint32(len(flows)) {
				continue
			}
			answered = answered || h.seq == c.seq
			switch e := status(body); {
			case e == nil:
			case errors.Is(e, unix.ENOENT):
				gone++
			default:
				gone++
				if err == nil {
					err = fmt.Errorf("%v: %w", &flows[h.seq-first], e)
				}
			}
		}
	}
	return gone, err
}

// begin starts the messages of one operation.
func (c *Conn) begin() {
	c.out = c.out[:0]
	c.seq++
}

func (c *Conn) send() error {
	if err := c.nl.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var n int
	var sendErr error
	err := c.raw.Write(func(fd uintptr) bool {
		n, sendErr = unix.SendmsgN(int(fd), c.out, nil, kernel, 0)
		return sendErr != unix.EAGAIN && sendErr != unix.EINTR
	})
	switch {
	case err != nil:
		return err
	case sendErr != nil:
		return os.NewSyscallError("sendmsg", sendErr)
	case n != len(c.out):
		return fmt.Errorf("sendmsg took %d of %d bytes", n, len(c.out))
	}
	return nil
}

var kernel = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}

// receive fills in[:n].
func (c *Conn) receive() error {
	if err := c.raw.Read(c.received); err != nil {
		return err
	}
	return os.NewSyscallError("recvfrom", c.err)
}

// header is what matters of struct nlmsghdr.
type header struct {
	kind uint16
	seq  uint32
}

const (
	headerSize = unix.SizeofNlMsghdr
	genmsgSize = 4 // struct nfgenmsg: family, version, resource
)

// next splits the first message off. ok is false at the end and where the bytes are no message.
func next(b []byte) (h header, body, rest []byte, ok bool) {
	if len(b) < headerSize {
		return header{}, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < headerSize || n > len(b) {
		return header{}, nil, nil, false
	}
	h = header{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])}
	return h, b[headerSize:n], b[min(align(n), len(b)):], true
}

// status reads the errno that begins struct nlmsgerr and the end of a dump: nil for none.
func status(body []byte) error {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return fmt.Errorf("%w: %w", ErrPermission, errno)
	}
	return errno
}

func align(n int) int { return (n + 3) &^ 3 }
