package ns

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Starter starts processes inside namespaces from one thread that lives as long as the Starter. The kernel kills them
// when that thread ends (PR_SET_PDEATHSIG), so none outlives the process, even one that is killed with SIGKILL.
type Starter struct {
	work chan func()
	done chan struct{}
	once sync.Once
}

// NewStarter starts the thread.
func NewStarter() *Starter {
	s := &Starter{work: make(chan func()), done: make(chan struct{})}
	go s.run()
	return s
}

// run serves until Close, on a thread that ends with it.
func (s *Starter) run() {
	// Never unlocked: the end of the goroutine is the end of the thread.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The runtime parks the main thread instead of ending it. Another goroutine gets another thread as long as
		// this one stays locked.
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			s.run()
		}()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	defer close(s.done)
	for f := range s.work {
		f()
	}
}

// Start starts the command inside the namespace, to be killed with the Starter. The caller waits for it.
func (s *Starter) Start(n *Namespace, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	result := make(chan error)
	s.work <- func() {
		err := n.Enter()
		if err == nil {
			// A child starts in the network namespace of the thread that forks it.
			if err = cmd.Start(); err != nil {
				err = fmt.Errorf("start %s in %s: %w", cmd.Path, n.name, err)
			}
		}
		if back := Leave(); back != nil && err == nil {
			err = back
		}
		result <- err
	}
	return <-result
}

// Close ends the thread; what it started and is still running is killed. Start must not be called afterwards.
func (s *Starter) Close() {
	s.once.Do(func() { close(s.work) })
	<-s.done
}
