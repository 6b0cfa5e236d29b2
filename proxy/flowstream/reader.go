package flowstream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// serve answers one reader until it has what it wants, is too slow, or goes.
func (s *Server) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	req, err := readRequest(conn)
	if err != nil {
		return
	}
	// A write may be waiting when the reader turns out to be too slow.
	sub := s.hub.Subscribe(req, func() { conn.Close() })
	defer sub.Close()
	s.mu.Lock()
	s.stats.Served++
	s.mu.Unlock()
	for _, line := range sub.Recent {
		if err := send(conn, line); err != nil {
			return
		}
	}
	if !req.Follow {
		return
	}
	// A reader says nothing after its request; when its side ends, so does this one.
	gone := make(chan struct{})
	s.running.Go(func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // any end is an end
		sub.Close()
	})
	for line := range sub.Lines() {
		if err := send(conn, line); err != nil {
			break
		}
	}
	sub.Close()
	conn.Close()
	<-gone
}

// sendTimeout is how long one line may wait for the reader.
const sendTimeout = 30 * time.Second

func send(conn net.Conn, line []byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err := conn.Write(line)
	return err
}

func readRequest(conn net.Conn) (Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return Request{}, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxRequest)).ReadBytes('\n')
	if err != nil {
		return Request{}, err
	}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		return Request{}, err
	}
	return req, conn.SetReadDeadline(time.Time{})
}

// ErrNoAgent is returned by Dial when nobody listens.
var ErrNoAgent = errors.New("no agent streams its flows there")

// Dial connects to the socket of an agent and asks. What is read from the result are lines of the log; its end is the
// end of the agent, or of its patience with this reader; at once where there are too many readers. The context bounds
// the connection, not the reading.
func Dial(ctx context.Context, path string, req Request) (io.ReadCloser, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("flow stream: %s: %w: %w", path, ErrNoAgent, err)
	}
	if err != nil {
		return nil, fmt.Errorf("flow stream: %w", err)
	}
	raw, err := json.Marshal(req)
	if err == nil {
		_, err = conn.Write(append(raw, '\n'))
	}
	// A reader that is turned away finds that out when it reads.
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		conn.Close()
		return nil, fmt.Errorf("flow stream: %w", err)
	}
	return conn, nil
}
