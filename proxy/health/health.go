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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config says what the endpoints report.
type Config struct {
	// Address is host:port to listen on. Whoever can reach it can read names of pods and policies, so the default of
	// the agent is a loopback address.
	Address string
	// Ready returns nil when the agent enforces the state of its sources, else why not.
	Ready func() error
	// Status is encoded as the JSON answer of /status.
	Status func() any
	// Metrics is what /metrics gathers.
	Metrics prometheus.Gatherer
	// Profiling adds /debug/pprof.
	Profiling bool
}

// Server is a bound listener that Serve answers on.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen binds the address, so that a taken port is an error at start and not a line in the log later.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve health and metrics on %s; choose another with --http-address: %w", cfg.Address, err)
	}
	return &Server{listener: l, http: &http.Server{
		Handler: handler(cfg),
		// A reader that stalls must not hold a connection, and a goroutine, for ever.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute, // a CPU profile takes 30 s
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}}, nil
}

// Addr is the address that Listen bound.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers until the context ends, then lets running answers finish for a second.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.http.Shutdown(drain) != nil {
			s.http.Close()
		}
	})
	err := s.http.Serve(s.listener)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
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
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}))
	if cfg.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}
