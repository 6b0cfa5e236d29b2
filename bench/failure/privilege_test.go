package failure

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// nobody is who the agent runs as, where the test may choose.
const nobody = 65534

// leastRole makes the test binary give up everything and become the program that its arguments name.
const leastRole = "FAILURE_TEST_LEAST"

// becomeLeast runs the program as an ordinary user whose one capability is CAP_NET_ADMIN, who can gain no other, who
// can write to no file system, and whose system calls are filtered: what the manifests in deploy ask of Kubernetes. In
// a user namespace with no other user, root stays root by number, and has lost root's rights all the same.
func becomeLeast(args []string) error {
	runtime.LockOSThread() // credentials belong to the thread, and exec takes this one's
	steps := []struct {
		name string
		do   func() error
	}{
		{"mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"private mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"read-only mounts", func() error {
			return unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}},
		{"bounding set", func() error {
			for c := range unix.CAP_LAST_CAP + 1 {
				if c == unix.CAP_NET_ADMIN || c == unix.CAP_SETUID || c == unix.CAP_SETGID || c == unix.CAP_SETPCAP {
					continue
				}
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
					return err
				}
			}
			return nil
		}},
		// SECBIT_KEEP_CAPS, SECBIT_NOROOT, SECBIT_NOROOT_LOCKED (linux/securebits.h)
		{"securebits", func() error { return unix.Prctl(unix.PR_SET_SECUREBITS, 1<<4|1<<0|1<<1, 0, 0, 0) }},
		{"user", func() error {
			if !otherUsers() {
				return nil
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGID, nobody, 0, 0); errno != 0 {
				return errno
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETUID, nobody, 0, 0); errno != 0 {
				return errno
			}
			return nil
		}},
		{"capabilities", func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			const only = 1 << unix.CAP_NET_ADMIN
			data := [2]unix.CapUserData{{Effective: only, Permitted: only, Inheritable: only}}
			return unix.Capset(&header, &data[0])
		}},
		{"ambient capability", func() error {
			return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN, 0, 0)
		}},
		{"no new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"seccomp filter", denySyscalls},
		{"exec", func() error { return syscall.Exec(args[0], args, os.Environ()) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// denied are system calls that the default seccomp profile of container runtimes refuses without CAP_SYS_ADMIN and its
// like (moby, profiles/seccomp), as far as every architecture has them.
var denied = []uint32{
	unix.SYS_ACCT, unix.SYS_ADD_KEY, unix.SYS_BPF, unix.SYS_CHROOT, unix.SYS_CLOCK_ADJTIME, unix.SYS_CLOCK_SETTIME,
	unix.SYS_DELETE_MODULE, unix.SYS_FANOTIFY_INIT, unix.SYS_FINIT_MODULE, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT,
	unix.SYS_FSOPEN, unix.SYS_INIT_MODULE, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_IO_URING_SETUP,
	unix.SYS_KCMP, unix.SYS_KEXEC_LOAD, unix.SYS_KEYCTL, unix.SYS_MBIND, unix.SYS_MOUNT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_OPEN_TREE, unix.SYS_PERF_EVENT_OPEN, unix.SYS_PIVOT_ROOT,
	unix.SYS_PTRACE, unix.SYS_QUOTACTL, unix.SYS_REBOOT, unix.SYS_REQUEST_KEY, unix.SYS_SETDOMAINNAME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETNS, unix.SYS_SETTIMEOFDAY, unix.SYS_SWAPOFF, unix.SYS_SWAPON, unix.SYS_SYSLOG,
	unix.SYS_UMOUNT2, unix.SYS_UNSHARE, unix.SYS_USERFAULTFD, unix.SYS_VHANGUP,
}

// denySyscalls has the kernel kill the process, and what it becomes, at the first of the denied calls.
func denySyscalls() error {
	// seccomp(2): struct seccomp_data begins with the number of the call.
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for i, number := range denied {
		filter = append(filter, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jt: uint8(len(denied) - i),
		})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_KILL_PROCESS})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// otherUsers tells whether there is any user but root.
func otherUsers() bool {
	content, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && len(strings.Fields(string(content))) == 3 && strings.Fields(string(content))[2] != "1"
}

// TestLeastPrivilege runs the agent with CAP_NET_ADMIN and nothing else.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	b := newBedOf(t, cluster, lab.Options{})
	b.must(b.Kill("one"))
	node, err := b.Place("node/one")
	b.must(err)

	// The program and the manifests lie in directories of root's.
	dir := t.TempDir()
	b.must(os.Chmod(filepath.Dir(dir), 0o755))
	program := filepath.Join(dir, "firstpacket")
	content, err := os.ReadFile(b.binary)
	b.must(err)
	b.must(os.WriteFile(program, content, 0o755))
	b.must(os.Chmod(b.Dir(), 0o755))
	files, err := filepath.Glob(filepath.Join(b.Dir(), "*"))
	b.must(err)
	for _, f := range files {
		b.must(os.Chmod(f, 0o644))
	}
	self, err := os.Executable()
	b.must(err)
	cmd := exec.Command(self, program, "agent", "--node-name", "one", "--manifests", b.Dir(), "--flow-log", "-")
	cmd.Env = append(os.Environ(), leastRole+"=1")
	output, err := os.Create(filepath.Join(dir, "output")) // opened here, where it may be written to
	b.must(err)
	defer output.Close()
	said := func() string {
		text, err := os.ReadFile(output.Name())
		b.must(err)
		return string(text)
	}
	cmd.Stdout, cmd.Stderr = output, output
	starter := ns.NewStarter()
	defer starter.Close()
	b.must(starter.Start(node.NS, cmd))
	defer func() {
		b.must(cmd.Process.Signal(unix.SIGTERM))
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("%v: %s", err, said())
		}
	}()
	ctx, cancel := b.ctx()
	defer cancel()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err = b.agent().Get(ctx, "/readyz"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	b.must(err)
	want := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000001000", "CapPrm:\t0000000000001000"}
	if otherUsers() {
		want = append(want, "Uid:\t65534\t65534\t65534\t65534")
	}
	for _, line := range want {
		if !strings.Contains(string(status), line) {
			t.Errorf("the agent does not have %q:\n%s", line, status)
		}
	}
	b.must(b.ApplyYAML(ctx, admitting("friend")))
	b.must(os.Chmod(filepath.Join(b.Dir(), "networkpolicy-default-server.yaml"), 0o644))
	eventually(t, "policy is in force", func() bool {
		s, err := statusOf(b.agent())
		return err == nil && s.Policies == 1
	})
	b.denied("client", "server")
	b.reaches("friend", "server")
	eventually(t, "the denial is logged", func() bool { return strings.Contains(said(), `"pod":"client"`) })
}
