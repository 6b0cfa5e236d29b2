package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forwarder makes connections to a port of a pod, through the API server and the kubelet. All share one connection to
// the API server, which is made when it is needed.
type forwarder struct {
	config *rest.Config
	url    *url.URL
	port   string

	mu       sync.Mutex
	conn     httpstream.Connection
	requests int
}

// dial implements the DialContext of a transport.
func (f *forwarder) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	// client-go's dialers take no context.
	go func() {
		conn, err := f.open()
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// open opens a pair of streams, as kubectl port-forward does for each connection: one for data, one that carries an
// error of the kubelet's.
func (f *forwarder) open() (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		select {
		case <-f.conn.CloseChan():
			f.conn = nil
		default:
		}
	}
	if f.conn == nil {
		conn, err := f.connect()
		if err != nil {
			return nil, fmt.Errorf("port-forward: %w", err)
		}
		f.conn = conn
	}
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, f.port)
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(f.requests))
	f.requests++
	failure, err := create(f.conn, headers.Clone())
	if err != nil {
		return nil, f.broken(err)
	}
	// Nothing is written to it.
	_ = failure.Close()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := create(f.conn, headers)
	if err != nil {
		return nil, f.broken(err)
	}
	s := &stream{Stream: data, streams: f.conn, failure: failure, said: make(chan error, 1)}
	go s.listen()
	return s, nil
}

// errLost is returned when the connection to the API server ends while a stream is made.
var errLost = errors.New("the connection to the API server is lost")

// create makes a stream. The library goes on waiting for the reply of a server that is gone, for half a minute; nobody
// else has to.
func create(conn httpstream.Connection, headers http.Header) (httpstream.Stream, error) {
	type result struct {
		stream httpstream.Stream
		err    error
	}
	done := make(chan result, 1)
	go func() {
		s, err := conn.CreateStream(headers)
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		return r.stream, r.err
	case <-conn.CloseChan():
		return nil, errLost
	}
}

// broken has the next connection made over a new one to the API server. Called with mu held.
func (f *forwarder) broken(err error) error {
	f.conn.Close()
	f.conn = nil
	return fmt.Errorf("port-forward: %w", err)
}

// connect prefers WebSockets, which pass proxies, as kubectl does; API servers before 1.31 know SPDY only.
func (f *forwarder) connect() (httpstream.Connection, error) {
	sockets, err := portforward.NewSPDYOverWebsocketDialerForStreaming(f.url, f.config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, f.url)
	conn, _, err := portforward.NewFallbackDialerForStreaming(sockets, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}).Dial(portforward.PortForwardProtocolV1Name)
	return conn, err
}

func (f *forwarder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// errForward is what the kubelet said of a connection that it could not make.
var errForward = errors.New("the node could not reach the agent")

// lastWords is how long the end of a connection waits for its reason.
const lastWords = time.Second

// stream is a connection in a stream of data. Deadlines are the business of those who hold it: contexts end requests.
type stream struct {
	httpstream.Stream
	streams httpstream.Connection
	failure httpstream.Stream
	said    chan error // what went wrong, once, or closed
}

// listen waits for what the kubelet says, or for the end of the connection.
func (s *stream) listen() {
	defer close(s.said)
	text, err := io.ReadAll(io.LimitReader(s.failure, maxError))
	if err == nil && len(text) > 0 {
		s.said <- fmt.Errorf("%w: %s", errForward, strings.TrimSpace(string(text)))
		_ = s.Reset() // so that who reads learns of it
	}
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if err == nil {
		return n, nil
	}
	// Both streams end together, but what is told on the other one may come a little later.
	late := time.NewTimer(lastWords)
	defer late.Stop()
	select {
	case said, ok := <-s.said:
		if ok {
			return n, said
		}
	case <-late.C:
	}
	return n, err
}

// Close implements net.Conn.
func (s *stream) Close() error {
	err := s.Reset()
	_ = s.failure.Reset()
	s.streams.RemoveStreams(s.Stream, s.failure)
	return err
}

type address string

func (address) Network() string  { return "port-forward" }
func (a address) String() string { return string(a) }

// LocalAddr implements net.Conn.
func (*stream) LocalAddr() net.Addr { return address("here") }

// RemoteAddr implements net.Conn.
func (*stream) RemoteAddr() net.Addr { return address("agent") }

// SetDeadline implements net.Conn.
func (*stream) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (*stream) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (*stream) SetWriteDeadline(time.Time) error { return nil }
