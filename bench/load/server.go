package load

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ports that a server listens on, on all addresses of its pod.
const (
	// TCPPort is the first of TCPPorts ports that accept connections and close them.
	TCPPort, TCPPorts = 10000, 512
	// SinkPort accepts connections, reads what comes and counts it.
	SinkPort = 9000
	// UDPPort is the first of UDPPorts ports that answer each datagram.
	UDPPort, UDPPorts = 20000, 128
	// DropPort takes datagrams and does not answer.
	DropPort = 9001
)

// acceptPause is how often connections are taken from the listeners' queues. The handshake is the kernel's alone, so
// that a server that sleeps meanwhile costs neither the client's time nor a processor.
const acceptPause = time.Millisecond

// server counts what reaches its ports.
type server struct {
	accepted, requests, bytes atomic.Uint64
	// forgotten are the embryonic resets of before the last Reset.
	forgotten            uint64
	stop                 atomic.Bool
	listeners, answerers int // epoll instances
	done                 chan error
	threads              int
}

// backlog is the length of a listener's queue, as far as net.core.somaxconn allows.
const backlog = 1 << 16

func newServer() (*server, error) {
	s := &server{done: make(chan error)}
	var err error
	if s.listeners, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if s.answerers, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for i := range TCPPorts {
		if err := listen(s.listeners, unix.SOCK_STREAM, TCPPort+i); err != nil {
			return nil, err
		}
	}
	for i := range UDPPorts {
		if err := listen(s.answerers, unix.SOCK_DGRAM, UDPPort+i); err != nil {
			return nil, err
		}
	}
	if err := listen(s.answerers, unix.SOCK_STREAM, SinkPort); err != nil {
		return nil, err
	}
	if err := listen(-1, unix.SOCK_DGRAM, DropPort); err != nil {
		return nil, err
	}
	s.start(s.accept)
	s.start(s.answer)
	return s, nil
}

func (s *server) start(f func() error) {
	s.threads++
	go func() { s.done <- f() }()
}

// close ends the threads. The process ends with the sockets.
func (s *server) close() error {
	s.stop.Store(true)
	var errs []error
	for range s.threads {
		errs = append(errs, <-s.done)
	}
	return errors.Join(errs...)
}

// listen opens a socket on the port and adds it to the epoll instance, unless that is -1.
func listen(epoll, kind, port int) error {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port}); err != nil {
		return fmt.Errorf("bind to port %d: %w", port, err)
	}
	if kind == unix.SOCK_DGRAM {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
			return fmt.Errorf("set IP_PKTINFO: %w", err)
		}
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, backlog); err != nil {
			return fmt.Errorf("listen on port %d: %w", port, err)
		}
	}
	if epoll < 0 {
		return nil
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watch port %d: %w", port, err)
	}
	return nil
}

// accept takes connections in and closes them, some milliseconds' worth at a time.
func (s *server) accept() error {
	events := make([]unix.EpollEvent, 256)
	for !s.stop.Load() {
		// Asleep while nothing happens at all, but not woken up by each connection.
		n, err := unix.EpollWait(s.listeners, events, 200)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for connections: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			for {
				fd, _, err := unix.Accept4(int(e.Fd), unix.SOCK_CLOEXEC)
				if err == unix.EAGAIN {
					break
				}
				if err == unix.EINTR || err == unix.ECONNABORTED {
					continue
				}
				if err != nil {
					return fmt.Errorf("accept: %w", err)
				}
				s.accepted.Add(1)
				_ = unix.Close(fd)
			}
		}
		if n > 0 {
			time.Sleep(acceptPause)
		}
	}
	return nil
}

// answer echoes datagrams, and starts a thread for each connection to the sink.
func (s *server) answer() error {
	events := make([]unix.EpollEvent, 64)
	b, oob := make([]byte, 2048), make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	for !s.stop.Load() {
		n, err := unix.EpollWait(s.answerers, events, 200)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for datagrams: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			if conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
				go s.drain(conn)
				continue
			}
			for {
				n, control, _, from, err := unix.Recvmsg(fd, b, oob, 0)
				if err != nil {
					break
				}
				s.requests.Add(1)
				// struct in_pktinfo says which address was asked, and as it stands, that this one is to answer (ip(7)); but
				// for the interface, which routing shall choose.
				clear(oob[unix.SizeofCmsghdr : unix.SizeofCmsghdr+4])
				_ = unix.Sendmsg(fd, b[:n], oob[:control], from, 0)
			}
		}
	}
	return nil
}

// drain reads a connection until its end.
func (s *server) drain(fd int) {
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 256<<10)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			return
		}
		s.bytes.Add(uint64(n))
	}
}

const (
	// quiet is how long nothing may arrive before a count is final.
	quiet = 10 * time.Millisecond
	// late is how long those are waited for that ought to be there: a busy machine may not let the server run at once.
	late = 2 * time.Second
)

func (s *server) do(job Job) Result {
	if job.Kind != Reset && job.Kind != Count {
		return Result{Error: fmt.Sprintf("a server does no job of kind %q", job.Kind)}
	}
	last, err := s.final(job.Limit)
	if err != nil {
		return Result{Error: err.Error()}
	}
	if job.Kind == Reset {
		s.accepted.Store(0)
		s.requests.Store(0)
		s.bytes.Store(0)
		if s.forgotten, err = embryonicResets(); err != nil {
			return Result{Error: err.Error()}
		}
	}
	return last
}

// final is the counts when nothing more comes, and as many connections or requests are there as are due, if ever.
func (s *server) final(due int) (Result, error) {
	var last Result
	for begin, calm := time.Now(), time.Now(); ; time.Sleep(acceptPause) {
		now, err := s.counts()
		if err != nil {
			return now, err
		}
		if now.Accepted != last.Accepted || now.Packets != last.Packets || now.Bytes != last.Bytes {
			last, calm = now, time.Now()
		}
		short := now.Accepted+now.Overtaken+int(now.Packets) < due && time.Since(begin) < late
		if !short && time.Since(calm) >= quiet {
			return last, nil
		}
	}
}

func (s *server) counts() (Result, error) {
	resets, err := embryonicResets()
	return Result{
		Accepted: int(s.accepted.Load()), Overtaken: int(resets - s.forgotten), Packets: s.requests.Load(),
		Bytes: s.bytes.Load(),
	}, err
}

// embryonicResets is the number of handshakes that a reset ended, in this namespace (TcpExt EmbryonicRsts).
func embryonicResets() (uint64, error) {
	b, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return 0, fmt.Errorf("read TCP's counters: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, "EmbryonicRsts"); i >= 0 && i < len(fields) {
			return strconv.ParseUint(fields[i], 10, 64)
		}
	}
	return 0, errors.New("read TCP's counters: there is no EmbryonicRsts")
}
