package fleet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// oldServer is an API server before 1.31, with its kubelet: port-forwards come over SPDY alone, and what asks for a
// WebSocket is refused. That newer ones are asked over WebSockets is what bench/deploy does with a real one.
type oldServer struct {
	*httptest.Server
	agent string // address

	refused, upgraded atomic.Int32
	streams           sync.WaitGroup

	mu    sync.Mutex
	conns []httpstream.Connection
}

func serveOld(t *testing.T, agent string) *oldServer {
	t.Helper()
	s := &oldServer{agent: agent}
	s.Server = httptest.NewServer(http.HandlerFunc(s.forward))
	t.Cleanup(func() {
		s.hangUp()
		s.Close()
		s.streams.Wait()
	})
	return s
}

// hangUp ends all connections, as a server that restarts does.
func (s *oldServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *oldServer) forward(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost { // WebSockets begin with GET
		s.refused.Add(1)
		http.Error(w, "unable to upgrade: SPDY only", http.StatusForbidden)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		return
	}
	var mu sync.Mutex
	failures := map[string]httpstream.Stream{}
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(st httpstream.Stream, replied <-chan struct{}) error {
		mu.Lock()
		defer mu.Unlock()
		id := st.Headers().Get(corev1.PortForwardRequestIDHeader)
		if st.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
			failures[id] = st
			return nil
		}
		failure := failures[id]
		s.streams.Go(func() {
			<-replied
			s.connect(st, failure)
		})
		return nil
	})
	if conn == nil {
		return
	}
	s.upgraded.Add(1)
	s.mu.Lock()
	s.conns = append(s.conns, conn)
	s.mu.Unlock()
	<-conn.CloseChan()
}

// connect is a kubelet's part: it tells on the error stream why it cannot.
func (s *oldServer) connect(data, failure httpstream.Stream) {
	defer failure.Close()
	defer func() { _ = data.Reset() }()
	to, err := net.Dial("tcp", s.agent)
	if err != nil {
		fmt.Fprintf(failure, "error forwarding port %s: %v", data.Headers().Get(corev1.PortHeader), err)
		return
	}
	defer to.Close()
	s.streams.Go(func() {
		_, _ = io.Copy(to, data)
		to.Close()
	})
	_, _ = io.Copy(data, to)
}

// through is an agent that is asked through the server.
func (s *oldServer) through(t *testing.T) (*Agent, *forwarder) {
	t.Helper()
	u, err := url.Parse(s.URL + "/api/v1/namespaces/firstpacket/pods/firstpacket-x/portforward")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{config: &rest.Config{Host: s.URL}, url: u, port: "9099"}
	transport := &http.Transport{DialContext: f.dial}
	a := &Agent{
		Name: "node-a", base: url.URL{Scheme: "http", Host: "127.0.0.1:9099"}, client: &http.Client{Transport: transport},
		close: func() { transport.CloseIdleConnections(); f.close() },
	}
	t.Cleanup(a.Close)
	return a, f
}

// TestForwardOverSPDY: a server that knows no WebSockets is asked over SPDY, over one connection for all questions, and
// over another when that is lost.
func TestForwardOverSPDY(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"host":%q}`, r.Host)
	}))
	defer agent.Close()
	s := serveOld(t, strings.TrimPrefix(agent.URL, "http://"))
	a, f := s.through(t)
	ask := func() {
		t.Helper()
		var answer struct{ Host string }
		if err := a.JSON(t.Context(), "/status", &answer); err != nil || answer.Host != "127.0.0.1:9099" {
			t.Errorf("%+v, %v", answer, err)
		}
	}
	var asked sync.WaitGroup
	for range 8 {
		asked.Go(ask)
	}
	asked.Wait()
	if n := s.upgraded.Load(); n != 1 || s.refused.Load() != 1 {
		t.Errorf("%d connections over SPDY after %d refused WebSockets, want one of each", n, s.refused.Load())
	}
	f.mu.Lock()
	lost := f.conn
	f.mu.Unlock()
	s.hangUp()
	<-lost.CloseChan()
	a.client.CloseIdleConnections()
	ask()
	if n := s.upgraded.Load(); n != 2 {
		t.Errorf("%d connections after the first was lost", n)
	}
}

// TestForwardFails: what the kubelet says of an agent that it cannot reach is told.
func TestForwardFails(t *testing.T) {
	s := serveOld(t, "127.0.0.1:1")
	var v any
	a, _ := s.through(t)
	err := a.JSON(t.Context(), "/status", &v)
	if !errors.Is(err, errForward) || !strings.Contains(err.Error(), "error forwarding port 9099") ||
		!strings.Contains(err.Error(), "node-a") {
		t.Error(err)
	}
	// A server that refuses both ways is not asked for ever.
	forbidding := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods is forbidden","code":403}`,
			http.StatusForbidden)
	}))
	defer forbidding.Close()
	a, _ = (&oldServer{Server: forbidding}).through(t)
	if err := a.JSON(t.Context(), "/status", &v); err == nil ||
		!strings.Contains(err.Error(), "forbidden") {
		t.Error(err)
	}
}
