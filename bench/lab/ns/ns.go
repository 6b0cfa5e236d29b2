// Package ns makes and visits network namespaces that belong to this process alone.
//
// A Namespace has no name: nothing is bound under /run/netns, a file descriptor is all that holds it. So the kernel
// takes it apart, with every interface, address and rule in it, when the process ends, however it ends. Sockets,
// netlink handles and processes made inside keep it alive for as long as they are open or running.
package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace held by a file descriptor. Its methods may be called from several goroutines, but
// not during or after Close.
type Namespace struct {
	name string
	fd   int
}

// home is the namespace of the process: that of every thread which does not visit another one just now.
var home = sync.OnceValues(func() (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return openCurrent()
})

func openCurrent() (int, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the thread's network namespace: %w", err)
	}
	return fd, nil
}

// New makes a namespace whose only interface is lo, up. The name serves messages only. It needs CAP_SYS_ADMIN in the
// user namespace of the process; see Enter.
func New(name string) (*Namespace, error) {
	n := &Namespace{name: name, fd: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		fd, err := openCurrent()
		if err != nil {
			return err
		}
		n.fd = fd
		return upLoopback()
	})
	if err != nil {
		if n.fd >= 0 {
			_ = n.Close()
		}
		return nil, fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return n, nil
}

// upLoopback sets lo up in the namespace of the calling thread.
func upLoopback() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open rtnetlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// Name is the name given to New.
func (n *Namespace) Name() string { return n.name }

// FD is the descriptor that holds the namespace; it stays the Namespace's own.
func (n *Namespace) FD() int { return n.fd }

// Close lets go of the namespace. Sockets and processes inside live on.
func (n *Namespace) Close() error {
	fd := n.fd
	n.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close network namespace %s: %w", n.name, err)
	}
	return nil
}

// Enter moves the calling thread into the namespace. The caller has locked its goroutine to the thread, and calls
// Leave before it unlocks; after a failed Leave it must end without unlocking, so that the thread ends too.
func (n *Namespace) Enter() error {
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.name, err)
	}
	return nil
}

// Leave moves the calling thread back to the namespace of the process.
func Leave() error {
	fd, err := home()
	if err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("return to the network namespace of the process: %w", err)
	}
	return nil
}

// Do calls f on a thread inside the namespace and waits for it. Sockets that f opens stay in the namespace; goroutines
// that f starts do not run in it. f must not call runtime.Goexit (and so not testing.T.FailNow).
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := n.Enter(); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread of its own and brings the thread back home afterwards. A thread that cannot be brought
// back is given up: a goroutine that ends while locked takes its thread with it.
func onThread(f func() error) error {
	if _, err := home(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := f()
		if back := Leave(); back != nil {
			done <- errors.Join(err, back)
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Sysctl writes values below /proc/sys/net of the namespace; keys are paths such as "ipv4/ip_forward".
func (n *Namespace) Sysctl(values map[string]string) error {
	return n.Do(func() error {
		for key, value := range values {
			// The kernel shows the net subtree of the namespace of the thread that opens the file.
			path := filepath.Join("/proc/sys/net", key)
			if err := os.WriteFile(path, []byte(value+"\n"), 0); err != nil {
				return fmt.Errorf("set sysctl net/%s in %s: %w", key, n.name, err)
			}
		}
		return nil
	})
}

// ReadSysctl reads one value below /proc/sys/net of the namespace.
func (n *Namespace) ReadSysctl(key string) (string, error) {
	var value string
	err := n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net", key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}
