package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ErrExited is wrapped by errors about a server that ended without being told to.
var ErrExited = errors.New("exited")

// Server is one process of the cluster. It keeps its address and its data when it is stopped and started again, so that
// tests can take it away from its clients for a while. Its methods may be called from any goroutine.
type Server struct {
	name  string
	path  string
	args  []string
	log   string // file that the process writes to, appended to across starts
	netns int
	// ready returns nil once the server does its work; it is asked again and again while the server starts.
	ready func(ctx context.Context) error

	mu  sync.Mutex
	run *process
}

// process is one run of a server.
type process struct {
	pid   int
	done  chan struct{} // closed when the process is gone and state is set
	state *os.ProcessState
}

// pollInterval is how often a starting server is asked whether it is ready.
const pollInterval = 20 * time.Millisecond

// Start starts the server and waits until it is ready; it does nothing when the server runs. If ctx ends first, or
// the server ends by itself, the process is gone when Start returns and the error has the last lines of its log.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil && !s.run.ended() {
		return nil
	}
	run, err := s.spawn()
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	if err := s.await(ctx, run); err != nil {
		_ = syscall.Kill(run.pid, syscall.SIGKILL)
		<-run.done
		return fmt.Errorf("start %s: %w\n%s", s.name, err, s.tail())
	}
	s.run = run
	return nil
}

func (s *Server) await(ctx context.Context, run *process) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		last := s.ready(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-run.done:
			return fmt.Errorf("%w: %s", ErrExited, run.state)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// spawn starts the process from an OS thread of its own, which lives as long as the process does: the death signal is
// sent when the thread that forked ends (prctl(2), PR_SET_PDEATHSIG), not when the parent process does.
func (s *Server) spawn() (*process, error) {
	out, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.path, s.args...)
	cmd.Dir = filepath.Dir(s.log)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // a ^C is for the test, which stops its servers itself
	}
	started := make(chan error, 1)
	run := &process{done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer out.Close()
		err := enter(s.netns)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			run.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state says it all: output goes straight to the file
		run.state = cmd.ProcessState
		close(run.done)
	}()
	return run, <-started
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Stop asks the server to end (SIGTERM), as an upgrade would, and waits for it; when ctx ends first it is killed and
// the context's error returned. Stopping a server that does not run does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return nil
	}
	_ = syscall.Kill(s.run.pid, syscall.SIGTERM)
	select {
	case <-s.run.done:
		s.run = nil
		return nil
	case <-ctx.Done():
		s.kill()
		return fmt.Errorf("stop %s: %w", s.name, ctx.Err())
	}
}

// Kill ends the server at once (SIGKILL), as a crash would.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill()
}

func (s *Server) kill() {
	if s.run == nil {
		return
	}
	_ = syscall.Kill(s.run.pid, syscall.SIGKILL)
	<-s.run.done
	s.run = nil
}

// Pause freezes the server (SIGSTOP): it still holds its connections but answers nothing, as if it or the network hung.
// Resume lets it go on. Both do nothing to a server that does not run.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume is the opposite of Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil && !s.run.ended() {
		_ = syscall.Kill(s.run.pid, sig)
	}
}

// Running tells whether the process is there; a paused one is.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run != nil && !s.run.ended()
}

// tailBytes is how much of a failed server's log goes into the error.
const tailBytes = 2 << 10

func (s *Server) tail() []byte {
	f, err := os.Open(s.log)
	if err != nil {
		return nil
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-tailBytes), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	return bytes.TrimSpace(b)
}
