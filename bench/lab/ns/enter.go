package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// marker tells the second run of the binary that it is inside: its value is the pid of the first run. A process that
// the second run starts has another parent, and so takes the variable for what it is, a leftover.
const marker = "FIRSTPACKET_LAB_PARENT"

// ErrNoUserNamespaces says that neither root's capabilities nor a user namespace could be had.
var ErrNoUserNamespaces = errors.New("cannot make a user namespace: run as root, or allow unprivileged user " +
	"namespaces (sysctls kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, " +
	"user.max_user_namespaces above 0)")

// Enter makes sure that the process runs in a network namespace of its own in which it may make others, so that
// nothing it does can reach the host's network. It is called first in main or TestMain: it runs the binary once more,
// with the same arguments, inside a new network namespace (and as anyone but root, a new user namespace in which the
// caller is root), passes signals on, and ends with the exit status of that second run. In the second run it returns.
//
// The second run is killed when the first one dies.
func Enter() error {
	if os.Getenv(marker) == strconv.Itoa(os.Getppid()) {
		if err := os.Unsetenv(marker); err != nil {
			return fmt.Errorf("clear %s: %w", marker, err)
		}
		return upLoopback()
	}
	code, err := runInside()
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// runInside runs this binary in new namespaces and returns its exit status.
func runInside() (int, error) {
	// Pdeathsig follows the thread that forked, so this thread has to live as long as the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	privileged, err := mayMakeNamespaces()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"="+strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if !privileged {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		if !privileged && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES)) {
			return 0, fmt.Errorf("%w: %w", ErrNoUserNamespaces, err)
		}
		return 0, fmt.Errorf("run %s in new namespaces: %w", os.Args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// A terminal's Ctrl-C reaches the whole foreground group; passing it on would deliver it twice.
			if s == unix.SIGINT && inForeground() {
				continue
			}
			_ = cmd.Process.Signal(s) // it may just have ended
		case err := <-ended:
			return exitCode(cmd, err)
		}
	}
}

// exitCode is the status to end with, by the shell's convention for a process that a signal ended.
func exitCode(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("wait for %s: %w", cmd.Path, err)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// mayMakeNamespaces says whether the process can make and configure network namespaces as it is.
func mayMakeNamespaces() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, fmt.Errorf("read the capabilities of the process: %w", err)
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	return data[0].Effective&need == need, nil
}

// inForeground says whether a terminal sends its signals to this process and its children alike.
func inForeground() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(tty) }()
	group, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
