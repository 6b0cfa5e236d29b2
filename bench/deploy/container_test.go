package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// container is what a runtime is told: a root file system and what happens to a process before it is executed there,
// in the order in which runc does it. Namespaces for the network are the caller's business.
type container struct {
	Root string
	Args []string
	Env  []string
	// Mounts are directories of the host by their place in the container.
	Mounts   map[string]string
	ReadOnly bool
	// User, Group and Groups are who the process is.
	User, Group int
	Groups      []int
	// Capabilities are all that it may have, by number (linux/capability.h).
	Capabilities []int
	// NoNewPrivs is the opposite of allowPrivilegeEscalation.
	NoNewPrivs bool
}

// specEnv hands the container to the processes that make it.
const specEnv = "DEPLOY_TEST_CONTAINER"

// command makes a command that runs the container. It goes through an init, which is the first process of a PID
// namespace: whatever happens to it, the kernel kills what is in there.
func (c *container) command() (*exec.Cmd, error) {
	spec, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleEnv + "=init", specEnv + "=" + string(spec)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	return cmd, nil
}

// containerInit starts the container's process, passes SIGTERM on and ends as it ends.
func containerInit() int {
	runtime.LockOSThread()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleEnv + "=container", specEnv + "=" + os.Getenv(specEnv)}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may just have ended
		}
	}()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// containerExec turns this process into the container's.
func containerExec() error {
	// Credentials belong to the thread; the one that executes the program becomes the process.
	runtime.LockOSThread()
	var c container
	if err := json.Unmarshal([]byte(os.Getenv(specEnv)), &c); err != nil {
		return err
	}
	if err := c.mount(); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := c.become(); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return fmt.Errorf("execute %s: %w", c.Args[0], unix.Exec(c.Args[0], c.Args, c.Env))
}

// mount puts the mounts into the root file system, whose directories for them are there, and changes into it.
func (c *container) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(c.Root, c.Root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	proc := filepath.Join(c.Root, "proc")
	err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		// A user namespace may not where parts of /proc are hidden from it; the processes seen are then those outside.
		err = unix.Mount("/proc", proc, "", unix.MS_BIND|unix.MS_REC, "")
	}
	if err != nil {
		return err
	}
	for to, from := range c.Mounts {
		if err := unix.Mount(from, filepath.Join(c.Root, to), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", to, err)
		}
	}
	if c.ReadOnly {
		if err := unix.Mount("", c.Root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("read-only root: %w", err)
		}
	}
	if err := unix.Chroot(c.Root); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// become gives up what the container does not have: capabilities from the bounding set, then the user, and last the
// capabilities in effect, which end with the execution unless the file has them.
func (c *container) become() error {
	for number := 0; ; number++ {
		if slices.Contains(c.Capabilities, number) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last one
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	if mapped(c.User) {
		if err := c.changeUser(); err != nil {
			return err
		}
	}
	var set uint32
	for _, number := range c.Capabilities {
		set |= 1 << number
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: set, Permitted: set}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	if c.NoNewPrivs {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

// changeUser uses the system calls themselves: the syscall package would change all threads, which lose the
// capabilities that this needs at different times.
func (c *container) changeUser() error {
	groups := make([]uint32, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = uint32(g)
	}
	if err := setgroups(groups); err != nil {
		return err
	}
	group, user := uintptr(c.Group), uintptr(c.User)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, group, group, group); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	return nil
}

// mapped tells whether the user namespace has the user. It has not where the tests run without root's rights; the
// container's process is then the namespace's root, with the same capabilities.
func mapped(user int) bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		first, err1 := strconv.Atoi(f[0])
		count, err2 := strconv.Atoi(f[2])
		if err1 == nil && err2 == nil && user >= first && user-first < count {
			return true
		}
	}
	return false
}
