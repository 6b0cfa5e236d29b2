// Package serve runs the servers of a lab: each says who it is and whom it saw, then echoes.
//
// On TCP the server speaks first: one banner line, and from then on whatever it reads. On UDP every datagram is
// answered by one with the banner line and the datagram's own bytes.
package serve

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// greeting begins every banner.
const greeting = "lab "

// MaxDatagram is the longest datagram that is echoed whole.
const MaxDatagram = 8 << 10

// Banner is what a server says first.
type Banner struct {
	// Name is the server's: namespace/name of the pod.
	Name string
	// Client is the address that the server saw; after masquerading it is not the client's own.
	Client netip.AddrPort
}

// Line is the banner as it is sent, with the newline.
func (b Banner) Line() string { return greeting + b.Name + " " + b.Client.String() + "\n" }

// ParseBanner takes the banner off what was received. False means that it is not (yet) complete.
func ParseBanner(received []byte) (b Banner, rest []byte, ok bool) {
	line, tail, ok := strings.Cut(string(received), "\n")
	if !ok {
		return Banner{}, received, false
	}
	text, ok := strings.CutPrefix(line, greeting)
	if !ok {
		return Banner{}, received, false
	}
	name, client, _ := strings.Cut(text, " ")
	addr, err := netip.ParseAddrPort(client)
	return Banner{name, addr}, []byte(tail), err == nil
}

// Server is a group of listening sockets with one name.
type Server struct {
	name    string
	wg      sync.WaitGroup
	mu      sync.Mutex
	closers map[io.Closer]struct{}
	closed  bool
}

// New makes a server without sockets.
func New(name string) *Server { return &Server{name: name, closers: make(map[io.Closer]struct{})} }

// Listen opens a socket in the namespace for each address and serves it. network is "tcp" or "udp".
func (s *Server) Listen(n *ns.Namespace, network string, addrs ...netip.AddrPort) error {
	return n.Do(func() error {
		for _, a := range addrs {
			if err := s.listen(network, a); err != nil {
				return fmt.Errorf("serve as %s: %w", s.name, err)
			}
		}
		return nil
	})
}

func (s *Server) listen(network string, a netip.AddrPort) error {
	if network == "udp" {
		conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(a))
		if err != nil {
			return err
		}
		s.serve(conn, func() { s.echoDatagrams(conn) })
		return nil
	}
	listener, err := net.ListenTCP(network, net.TCPAddrFromAddrPort(a))
	if err != nil {
		return err
	}
	s.serve(listener, func() { s.accept(listener) })
	return nil
}

// serve runs f, which ends when the socket is closed, by Close if not before.
func (s *Server) serve(socket io.Closer, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = socket.Close()
		return
	}
	s.closers[socket] = struct{}{}
	s.wg.Go(func() {
		f()
		_ = socket.Close()
		s.mu.Lock()
		delete(s.closers, socket)
		s.mu.Unlock()
	})
}

func (s *Server) accept(listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The connection was gone before it was accepted, or descriptors have run out for the moment.
			time.Sleep(time.Millisecond)
			continue
		}
		s.serve(conn, func() {
			client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
			if _, err := io.WriteString(conn, s.banner(client)); err == nil {
				_, _ = io.Copy(conn, conn) // until either side ends it
			}
		})
	}
}

func (s *Server) echoDatagrams(conn *net.UDPConn) {
	buf := make([]byte, MaxDatagram)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error to an earlier answer
		}
		answer := append([]byte(s.banner(client)), buf[:n]...)
		_, _ = conn.WriteToUDPAddrPort(answer, client)
	}
}

func (s *Server) banner(client netip.AddrPort) string {
	return Banner{s.name, netip.AddrPortFrom(client.Addr().Unmap(), client.Port())}.Line()
}

// Close closes all sockets, connections included, and waits for what served them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.closers {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
