// Package nstest gives tests a network namespace of their own.
//
// Everything that touches the kernel's network state in a test runs inside a namespace made here, so that no test can
// change the host's ruleset, addresses, routes or conntrack table. As root the namespaces are made at once; otherwise
// Elevate, called first in TestMain, runs the test binary again inside a user namespace in which it may make them.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is an anonymous network namespace. It lives until the test that made it ends and every socket, process and thread
// in it is gone; nothing of it is left behind when the test binary dies.
type NS struct {
	t      testing.TB
	handle netns.NsHandle
}

// New makes a network namespace whose only interface is lo, up. A namespace that cannot be made fails the test.
func New(t testing.TB) *NS {
	t.Helper()
	ns := &NS{t: t, handle: netns.None()}
	err := visit(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if ns.handle, err = netns.Get(); err != nil {
			return fmt.Errorf("open the new namespace: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		return nil
	})
	t.Cleanup(func() {
		if ns.handle.IsOpen() {
			_ = ns.handle.Close()
		}
	})
	if err != nil {
		ns.fail(err)
	}
	return ns
}

// Handle is the open namespace, for interfaces that take one. It is closed when the test ends.
func (n *NS) Handle() netns.NsHandle { return n.handle }

// Do runs f inside the namespace, on the calling goroutine, whose OS thread is locked meanwhile: f may end the test
// with t.Fatal. Sockets opened in f stay in the namespace after Do; goroutines started by f do not run in it.
func (n *NS) Do(f func()) {
	n.t.Helper()
	_ = n.Run(func() error { f(); return nil })
}

// Run is Do for functions that return an error, and returns that error.
func (n *NS) Run(f func() error) error {
	n.t.Helper()
	err := visit(func() error {
		if err := netns.Set(n.handle); err != nil {
			return &threadError{fmt.Errorf("enter: %w", err)}
		}
		return f()
	})
	if te := (*threadError)(nil); errors.As(err, &te) {
		n.fail(err)
	}
	return err
}

// fail ends the test. When the thread could not be brought back it is still locked to this goroutine, and dies with it.
func (n *NS) fail(err error) {
	n.t.Helper()
	n.t.Fatalf("network namespace: %v", err)
}

// threadError marks failures of entering or leaving, as opposed to those of the visiting function.
type threadError struct{ error }

func (e *threadError) Unwrap() error { return e.error }

// visit runs f, which may change the thread's network namespace, and brings the thread back to where it was, also
// when f leaves by a panic or runtime.Goexit. A thread that cannot be brought back stays locked to the goroutine,
// so that the runtime throws it away at the goroutine's end and never runs other code in the wrong namespace.
func visit(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return &threadError{fmt.Errorf("open the current namespace: %w", err)}
	}
	defer func() {
		restoreErr := netns.Set(home)
		_ = home.Close()
		if restoreErr != nil {
			err = &threadError{fmt.Errorf("return to the namespace before: %w", restoreErr)}
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// elevated is set in the environment of the process that Elevate starts.
const elevated = "FIRSTPACKET_TEST_ELEVATED"

// Elevate returns at once when the process may make network namespaces. Otherwise it runs the test binary again
// with the same arguments in a new user and network namespace, where it is root, and ends the process with the
// child's status. Call it first in TestMain.
func Elevate() {
	if os.Geteuid() == 0 || os.Getenv(elevated) != "" {
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), elevated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	// The death signal is sent when the starting thread ends, so that thread must live as long as the child.
	runtime.LockOSThread()
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // the child, in the same process group, ends on it and decides
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() >= 0 {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "not root, and the user namespace for the tests failed: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}
