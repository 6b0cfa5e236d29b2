//go:build vm

package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// sctpPorts are what the web pods listen on.
const sctpOpen, sctpClosed uint16 = 9000, 9001

// allowSCTP lets the client reach one port over SCTP. That TCP may come in at the other shows that the protocol counts.
const allowSCTP = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 9000, protocol: SCTP}, {port: 9001}]
`

// listenSCTP accepts associations at the address inside the namespace until the test ends; an echo answers each.
func (b *bed) listenSCTP(n *ns.Namespace, at netip.AddrPort) {
	b.Helper()
	var fd int
	b.must(n.Do(func() (err error) {
		if fd, err = sctpSocket(at.Addr(), unix.SOCK_NONBLOCK); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(at)); err != nil {
			return fmt.Errorf("bind to %s: %w", at, err)
		}
		return unix.Listen(fd, 8)
	}))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if ready(fd, unix.POLLIN, 50*time.Millisecond) == nil {
				if c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC); err == nil {
					echoOnce(c)
				}
			}
		}
	}()
	b.Cleanup(func() { close(stop); <-done })
}

func echoOnce(fd int) {
	defer unix.Close(fd)
	buf := make([]byte, 64)
	if ready(fd, unix.POLLIN, patience) == nil {
		if n, err := unix.Read(fd, buf); err == nil && n > 0 {
			_, _ = unix.Write(fd, buf[:n])
		}
	}
}

// associate connects, exchanges a few bytes and closes. Its error is ETIMEDOUT when nothing comes back within wait.
func associate(n *ns.Namespace, from netip.Addr, to netip.AddrPort, wait time.Duration) error {
	return n.Do(func() error {
		fd, err := sctpSocket(to.Addr(), unix.SOCK_NONBLOCK)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return fmt.Errorf("bind to %s: %w", from, err)
		}
		if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		if err := ready(fd, unix.POLLOUT, wait); err != nil {
			return err
		}
		if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
			return errors.Join(err, unix.Errno(code))
		}
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			return err
		}
		if err := ready(fd, unix.POLLIN, wait); err != nil {
			return err
		}
		buf := make([]byte, 64)
		if got, err := unix.Read(fd, buf); err != nil || string(buf[:got]) != "hello" {
			return fmt.Errorf("echo %q: %w", buf[:max(got, 0)], err)
		}
		return nil
	})
}

func sctpSocket(a netip.Addr, flags int) (int, error) {
	domain := unix.AF_INET
	if a.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, fmt.Errorf("SCTP socket: %w", err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// ready waits for the event; ETIMEDOUT if it does not come.
func ready(fd int, event int16, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, int(max(time.Until(deadline), 0)/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		default:
			return nil
		}
	}
}

func TestSCTP(t *testing.T) {
	b := newBed(t, lab.Options{}, allowSCTP)
	client, other := b.place("default/client"), b.place("default/other")
	for _, name := range []string{"default/web-1", "default/web-2"} {
		web := b.place(name)
		for _, v6 := range []bool{false, true} {
			open, closed := web.At(v6, sctpOpen), web.At(v6, sctpClosed)
			b.listenSCTP(web.NS, open)
			b.listenSCTP(web.NS, closed)
			from, _ := client.Addr(v6)
			for range 2 { // the second time from the cache of verdicts
				if err := associate(client.NS, from, open, patience); err != nil {
					t.Errorf("client to %s: %v", open, err)
				}
			}
			const short = 500 * time.Millisecond
			if err := associate(client.NS, from, closed, short); !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("client to %s, which is allowed for TCP only: %v", closed, err)
			}
			from, _ = other.Addr(v6)
			if err := associate(other.NS, from, open, short); !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("other to %s: %v", open, err)
			}
			b.recorded("other over SCTP", func(r agents.Record) bool {
				return r.Proto == "sctp" && r.Src.Pod == "other" && r.Dst.IP == open.Addr().String() && r.Dst.Port == sctpOpen
			})
		}
	}
}
