// Package flowstream hands the lines of the denied-flow log to readers on the node as they are written, over a unix
// socket.
//
// A reader connects, sends one line of JSON, a Request, and receives lines of the log: the newest ones that are
// remembered first, then, if it asked to follow, each further one. A reader that does not keep up is disconnected and
// counted; the log never waits for anybody.
package flowstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// DefaultPath is where agents listen unless they are told otherwise.
const DefaultPath = "/run/firstpacket/flows.sock"

// Config says where to listen. Only Path is needed; zero values of the rest give the defaults.
type Config struct {
	// Path is the socket. Its folder is made if it is not there. Whoever may write to the socket can read names of pods
	// and policies: it is for its owner and group only.
	Path string
	// Hub is where the lines come from; nil makes one, with Recent and Backlog.
	Hub *Hub
	// Recent is how many lines are remembered for readers to come. Default 1000.
	Recent int
	// Backlog is how many lines a reader may be behind. Default 1000.
	Backlog int
	// Readers is how many there may be at a time; further ones are turned away. Default 64.
	Readers int
}

const (
	defaultRecent  = 1000
	defaultBacklog = 1000
	defaultReaders = 64
	// requestTimeout is how long a reader may take to say what it wants.
	requestTimeout = 5 * time.Second
	// maxRequest bounds a request in bytes.
	maxRequest = 4096
)

func (c *Config) validate() error {
	if c.Path == "" {
		return errors.New("flow stream: no path of a socket")
	}
	if c.Recent < 0 || c.Backlog < 0 || c.Readers < 0 {
		return fmt.Errorf("flow stream: negative value in %+v", *c)
	}
	for _, d := range []struct {
		value *int
		def   int
	}{{&c.Recent, defaultRecent}, {&c.Backlog, defaultBacklog}, {&c.Readers, defaultReaders}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	return nil
}

// Request is what a reader asks for.
type Request struct {
	// Recent is the number of remembered lines to begin with; negative means all there are.
	Recent int `json:"recent"`
	// Follow asks for further lines as they are written.
	Follow bool `json:"follow"`
}

// Stats are totals since the server was made, but for Readers, which is the present number.
type Stats struct {
	Readers int
	// Served counts requests; Refused readers that were turned away because there were too many; Dropped readers that
	// did not keep up.
	Served, Refused, Dropped uint64
}

// Server is the side of the log.
type Server struct {
	cfg      Config
	listener *net.UnixListener
	socket   os.FileInfo
	// running counts the goroutines of readers.
	running sync.WaitGroup

	hub *Hub

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool // nobody is admitted any more
	stats  Stats
}

// Listen makes the socket, in the place of one that is there: a new agent takes over from an old one without a moment
// in which nobody listens.
func Listen(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o755); err != nil {
		return nil, fmt.Errorf("flow stream: %w", err)
	}
	// A name of its own first: the socket appears under its path with its mode set and somebody listening.
	temporary := fmt.Sprintf("%s.%d", cfg.Path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("flow stream: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("flow stream: %w", err)
	}
	l.SetUnlinkOnClose(false)
	s := &Server{cfg: cfg, listener: l, hub: cfg.Hub, conns: map[net.Conn]struct{}{}}
	if s.hub == nil {
		s.hub = NewHub(cfg.Recent, cfg.Backlog)
	}
	if err := s.place(temporary); err != nil {
		l.Close()
		return nil, errors.Join(fmt.Errorf("flow stream: %w", err), os.Remove(temporary))
	}
	return s, nil
}

func (s *Server) place(temporary string) error {
	if err := os.Chmod(temporary, 0o660); err != nil {
		return err
	}
	if info, err := os.Lstat(s.cfg.Path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", s.cfg.Path)
	}
	var err error
	if s.socket, err = os.Lstat(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, s.cfg.Path)
}

// Publish hands a line to the hub.
func (s *Server) Publish(line []byte) { s.hub.Publish(line) }

// Stats may be called at any time.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Readers, st.Dropped = len(s.conns), s.hub.droppedCount()
	return st
}

// Serve answers readers until the context ends, then disconnects them all and takes the socket away. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.running.Wait()
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	for {
		conn, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("flow stream: %w", err)
		case err != nil:
			// Out of file descriptors, most likely: others may give some back.
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		case s.admit(conn):
			s.running.Go(func() { s.serve(conn) })
		default:
			conn.Close()
		}
	}
}

// acceptPause lies between two attempts to accept when the first failed.
const acceptPause = 100 * time.Millisecond

// admit counts a reader in, unless there are too many, or close has disconnected those that there were.
func (s *Server) admit(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.conns) >= s.cfg.Readers {
		s.stats.Refused++
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

// close ends everything that Serve waits for.
func (s *Server) close() {
	s.listener.Close()
	// Another agent may have put its own socket there.
	if info, err := os.Lstat(s.cfg.Path); err == nil && os.SameFile(info, s.socket) {
		// A socket that stays does no harm: the next agent replaces it.
		_ = os.Remove(s.cfg.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
}

// Close takes the socket away of a server whose Serve was never called.
func (s *Server) Close() { s.close() }
