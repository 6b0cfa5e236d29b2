package deploy

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// serveKubelet answers the API server as a kubelet does. In a port-forward, each pair of streams is a connection to the
// pod's loopback address, which for pods on the host network is the node's. What else is asked is for others, which may
// be nil. It returns the port.
func serveKubelet(t *testing.T, node *ns.Namespace, address string, others http.Handler) int32 {
	t.Helper()
	var l net.Listener
	if err := node.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	k := &forwards{node: node, others: others}
	s := httptest.NewUnstartedServer(k)
	s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(func() {
		k.close()
		s.Close()
	})
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// forwards are the connections of a kubelet.
type forwards struct {
	node    *ns.Namespace
	others  http.Handler
	running sync.WaitGroup

	mu    sync.Mutex
	conns []httpstream.Connection
}

func (k *forwards) close() {
	k.mu.Lock()
	for _, c := range k.conns {
		c.Close()
	}
	k.mu.Unlock()
	k.running.Wait()
}

// ServeHTTP upgrades a request for /portForward/NAMESPACE/POD.
func (k *forwards) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/portForward/firstpacket/") {
		if k.others == nil {
			http.NotFound(w, r)
			return
		}
		k.others.ServeHTTP(w, r)
		return
	}
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream)
	ended := make(chan struct{})
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		select {
		case streams <- s:
		case <-ended:
		}
		return nil
	})
	if conn == nil {
		return
	}
	k.mu.Lock()
	k.conns = append(k.conns, conn)
	k.mu.Unlock()
	defer conn.Close()
	defer close(ended)
	failures := map[string]httpstream.Stream{}
	for {
		select {
		case s := <-streams:
			id := s.Headers().Get(corev1.PortForwardRequestIDHeader)
			if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
				failures[id] = s
				continue
			}
			failure := failures[id]
			delete(failures, id)
			k.running.Go(func() { k.forward(s, failure) })
		case <-conn.CloseChan():
			return
		}
	}
}

func (k *forwards) forward(data, failure httpstream.Stream) {
	defer failure.Close()
	defer func() { _ = data.Reset() }()
	var to net.Conn
	if err := k.node.Do(func() (err error) {
		to, err = net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", data.Headers().Get(corev1.PortHeader)), 5*time.Second)
		return err
	}); err != nil {
		_, _ = io.WriteString(failure, err.Error())
		return
	}
	defer to.Close()
	var copying sync.WaitGroup
	copying.Go(func() {
		_, _ = io.Copy(to, data)
		to.Close()
	})
	_, _ = io.Copy(data, to)
	_ = data.Reset()
	copying.Wait()
}
