// Command init is the only program of the test machine besides the agent and the tests: its first process, the modprobe
// that the kernel calls when a feature is used whose module is not loaded, and false.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/vm/kmod"
	"github.com/firstpacket/firstpacket/bench/vm/plan"
)

func main() {
	switch {
	case filepath.Base(os.Args[0]) == "modprobe":
		if err := modprobe(os.Args[len(os.Args)-1]); err != nil {
			os.Exit(1)
		}
	case filepath.Base(os.Args[0]) == "false": // tests use it as a program that fails
		os.Exit(1)
	case os.Getpid() == 1:
		begin()
	default:
		run()
	}
}

// modprobe is called as "/sbin/modprobe -q -- NAME" (call_modprobe, kernel/module/kmod.c). Names without a module are
// everyday: the kernel asks for every protocol and expression that it does not know.
func modprobe(name string) error {
	var index kmod.Index
	if err := decode(plan.Index, &index); err != nil {
		return err
	}
	return index.Load(plan.Modules, name)
}

func decode(file string, v any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// begin is what the kernel starts. It makes the machine usable, has a child run the tests, takes care of processes
// whose parents are gone, and switches the machine off.
func begin() {
	line, err := prepare()
	if err == nil {
		err = supervise(line)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		if line != nil {
			_ = plan.Send(line, plan.Event{Kind: plan.Done, Text: err.Error()})
		}
	}
	if line != nil {
		drain(line)
	}
	unix.Sync()
	// Should the reboot fail, the kernel panics at the end of its first process, which ends the machine just as well.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// drain waits until the serial line has sent everything (tcdrain).
func drain(line *os.File) { _ = unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, 1) }

// mounts are the file systems that tests expect to find, in this order.
var mounts = []struct{ kind, target, options string }{
	{"devtmpfs", "/dev", ""},
	{"proc", "/proc", ""},
	{"sysfs", "/sys", ""},
	{"tmpfs", "/tmp", "mode=1777"},
	{"tmpfs", "/run", "mode=755"},
}

// prepare makes the machine usable and opens the serial line.
func prepare() (*os.File, error) {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return nil, err
		}
		// The kernel may have mounted /dev by itself (CONFIG_DEVTMPFS_MOUNT).
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	fd, err := unix.Open(plan.Line, unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", plan.Line, err)
	}
	line := os.NewFile(uintptr(fd), plan.Line)
	// Raw: what is written comes out unchanged.
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &unix.Termios{
		Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200,
	}); err != nil {
		return line, fmt.Errorf("set up %s: %w", plan.Line, err)
	}
	if err := likeANode(); err != nil {
		return line, err
	}
	return line, loopback()
}

// nodeModules and nodeSysctls are what Kubernetes asks of a node: kubeadm's preflight checks want bridged packets to
// pass netfilter, and kube-proxy raises the size of conntrack's table (--conntrack-min). The other modules are what
// every agent uses: nf_tables begins a transaction anew for each module that is missing, and with an emulated processor
// each modprobe takes half a second. IPVS, SCTP and flow tables are left for the kernel to find.
var (
	nodeModules = []string{
		"nf_conntrack", "br_netfilter", "veth", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq",
		"nft_objref", "nft_limit", "nft_fib_inet", "nft_reject_inet", "nft_queue", "nft_compat", "nfnetlink_queue",
		"nf_conntrack_netlink",
	}
	nodeSysctls = map[string]string{"net/netfilter/nf_conntrack_max": "131072"}
)

func likeANode() error {
	var index kmod.Index
	if err := decode(plan.Index, &index); err != nil {
		return err
	}
	for _, name := range nodeModules {
		// Some kernels have it built in.
		if err := index.Load(plan.Modules, name); err != nil && !errors.Is(err, kmod.ErrUnknown) {
			return err
		}
	}
	for name, value := range nodeSysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
	}
	return nil
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// supervise starts this program again and waits for its end, and for that of all processes that nobody else waits for.
func supervise(line *os.File) error {
	child, err := os.StartProcess("/proc/self/exe", []string{"run"}, &os.ProcAttr{
		Env: []string{
			"PATH=/usr/bin:/bin:/sbin", "HOME=/tmp", "TMPDIR=/tmp", "GOTRACEBACK=all", binary.Env + "=" + plan.Agent,
		},
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, line},
	})
	if err != nil {
		return fmt.Errorf("start the tests: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the tests: %w", err)
		case pid == child.Pid && status.ExitStatus() != 0:
			return fmt.Errorf("the process that runs the tests ended with status %d", status.ExitStatus())
		case pid == child.Pid:
			return nil
		}
	}
}

// run goes through the plan. The serial line is the fourth file it was started with.
func run() {
	line := os.NewFile(3, plan.Line)
	if err := runPlan(line); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

func runPlan(line io.Writer) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	if err := plan.Send(line, plan.Event{
		Kind: plan.Booted, Text: unix.ByteSliceToString(name.Release[:]) + " " + unix.ByteSliceToString(name.Version[:]),
	}); err != nil {
		return err
	}
	var p plan.Plan
	if err := decode(plan.File, &p); err != nil {
		return err
	}
	all := true
	for _, s := range p.Steps {
		ok, err := runStep(line, s)
		if err != nil {
			return err
		}
		all = all && ok
	}
	return plan.Send(line, plan.Event{Kind: plan.Done, OK: all})
}

// runStep runs one test binary and passes its output on, line by line.
func runStep(line io.Writer, s plan.Step) (bool, error) {
	if err := plan.Send(line, plan.Event{Kind: plan.Started, Package: s.Package}); err != nil {
		return false, err
	}
	start := time.Now()
	cmd := exec.Command(s.Binary, s.Args...)
	cmd.Dir = s.Dir
	output := &lines{line: line, name: s.Package}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = 5 * time.Second // for processes that outlive the tests with our pipe in their hands
	end := plan.Event{Kind: plan.Ended, Package: s.Package, OK: true}
	if err := cmd.Run(); err != nil {
		end.OK, end.Text = false, err.Error()
	}
	output.flush()
	if output.err != nil {
		return false, output.err
	}
	end.Elapsed = time.Since(start)
	return end.OK, plan.Send(line, end)
}

// lines sends what is written to it as events, line by line. The first failure is kept in err.
type lines struct {
	line io.Writer
	name string
	rest []byte
	err  error
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		text, rest, found := bytes.Cut(l.rest, []byte{'\n'})
		if !found {
			return len(b), l.err
		}
		l.send(text)
		l.rest = rest
	}
}

// flush sends a last line that has no end.
func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.send(l.rest)
	}
}

func (l *lines) send(text []byte) {
	if l.err == nil {
		l.err = plan.Send(l.line, plan.Event{Kind: plan.Output, Package: l.name, Text: string(text)})
	}
}
