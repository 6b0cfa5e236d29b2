package kube

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// enter puts the calling thread into a network namespace; 0 leaves it where it is. The caller has locked the thread,
// and lets it end with its goroutine afterwards: a thread is never brought back, so it cannot come back wrong.
func enter(netns int) error {
	if netns == 0 {
		return nil
	}
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network namespace of descriptor %d: %w", netns, err)
	}
	return nil
}

// within runs f on a thread inside the network namespace; sockets that f opens stay there.
func within(netns int, f func() error) error {
	if netns == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := enter(netns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// dialer dials from inside the network namespace. Addresses are numeric here, so the socket is opened by the calling
// goroutine and no resolver runs.
func dialer(netns int) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = within(netns, func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// reservation keeps a TCP port for a server that comes and goes: a socket that is bound with SO_REUSEPORT and never
// listens. Only sockets of the same user with the same option can bind beside it (socket(7)), so the server can, and
// the kernel gives the port to nobody else; while the server is down a connect is refused as it should be.
type reservation struct {
	fd   int
	addr netip.AddrPort
}

func reserve(netns int, addr netip.Addr) (*reservation, error) {
	var r *reservation
	err := within(netns, func() (err error) {
		r, err = reservePort(addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reserve a port of %s: %w", addr, err)
	}
	return r, nil
}

func reservePort(addr netip.Addr) (*reservation, error) {
	family, local := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16()})
	if addr.Is4() {
		family, local = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	port, err := bindAny(fd, local)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &reservation{fd: fd, addr: netip.AddrPortFrom(addr, port)}, nil
}

// bindAny binds the socket to a free port of local, and returns the port.
func bindAny(fd int, local unix.Sockaddr) (uint16, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, local); err != nil {
		return 0, err
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := bound.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, fmt.Errorf("bound to an address of type %T", bound)
}

func (r *reservation) release() { unix.Close(r.fd) }
