// Package health serves the agent's HTTP endpoints: /healthz, /readyz, /status, /metrics and /debug/pprof.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says what the endpoints report.
type Config struct {
	// Address is where to listen: host:port, or unix:PATH, or several of these with commas between. Whoever can reach it
	// can read names of pods and policies, so the default of the agent is a loopback address. A pod that overlaps with
	// another one on its node answers probes on a socket of its own.
	Address string
	// Ready returns nil when the agent enforces the state of its sources, else why not.
	Ready func() error
	// Status is encoded as the JSON answer of /status.
	Status func() any
	// Metrics is what /metrics gathers.
	Metrics prometheus.Gatherer
	// Profiling adds /debug/pprof.
	Profiling bool
	// More are further endpoints, by path.
	More map[string]http.Handler
}

// Server is the bound listeners that Serve answers on.
type Server struct {
	listeners []net.Listener
	http      *http.Server
}

// Listen binds all addresses or none, so that a taken port is an error at start and not a line in the log later. A
// socket that a dead process left at a path is replaced.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{http: &http.Server{
		Handler: handler(cfg),
		// A reader that stalls must not hold a connection, and a goroutine, for ever.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute, // a CPU profile takes 30 s
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}}
	for address := range strings.SplitSeq(cfg.Address, ",") {
		l, err := listen(ctx, address)
		if err != nil {
			for _, bound := range s.listeners {
				bound.Close()
			}
			return nil, fmt.Errorf("cannot serve health and metrics on %s; choose another with --http-address: %w", address, err)
		}
		s.listeners = append(s.listeners, l)
	}
	return s, nil
}

// Network splits one address of Config into what net.Dial wants: "tcp" and host:port, or "unix" and a path.
func Network(address string) (network, rest string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", address
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	network, address := Network(address)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, address)
	if network != "unix" || !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	if c, dialErr := (&net.Dialer{}).DialContext(ctx, network, address); !errors.Is(dialErr, unix.ECONNREFUSED) {
		if dialErr == nil {
			c.Close()
		}
		return nil, err // somebody listens
	}
	if err := os.Remove(address); err != nil {
		return nil, err
	}
	return lc.Listen(ctx, network, address)
}

// Addr is the first address that Listen bound.
func (s *Server) Addr() net.Addr { return s.listeners[0].Addr() }

// Serve answers until the context ends, then lets running answers finish for a second.
func (s *Server) Serve(ctx context.Context) error {
	// Answers that go on for as long as somebody reads end with the context.
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
	})
	var group errgroup.Group
	for _, l := range s.listeners {
		group.Go(func() error {
			err := s.http.Serve(l)
			if !errors.Is(err, http.ErrServerClosed) {
				s.http.Close() // one that fails ends the others
				return fmt.Errorf("serve health and metrics on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	err := group.Wait()
	if !stop() {
		<-stopped
	}
	return err
}

func handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		// The process ends when one of its parts does, so an answer at all is health.
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		// The client that went away is the only possible failure, and nobody is left to tell.
		_ = enc.Encode(cfg.Status())
	})
	options := promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, options))
	for path, h := range cfg.More {
		mux.Handle("GET "+path, h)
	}
	if cfg.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}
