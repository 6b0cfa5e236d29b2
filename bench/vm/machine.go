package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/firstpacket/firstpacket/bench/vm/plan"
)

// errTests says that tests failed, which has been printed already.
var errTests = errors.New("tests failed")

// errSilent says that a machine never got as far as its init.
var errSilent = errors.New("the kernel did not start")

// kvmPatience is how long a machine under KVM may take to start its init; it takes a second. Some hosts offer a
// /dev/kvm on which nothing runs.
const kvmPatience = 20 * time.Second

// boot runs the machine and prints what it says.
func boot(ctx context.Context, o *options, k kernel, image string) error {
	// Present once KVM has been seen not to work here.
	useless := filepath.Join(o.cache, "no-kvm")
	if o.accel == "auto" && mayUse("/dev/kvm") && !exists(useless) {
		m := machine{options: o, kernel: k, image: image, accel: "kvm", patience: kvmPatience}
		err := m.run(ctx)
		if !errors.Is(err, errSilent) || ctx.Err() != nil {
			return err
		}
		say("/dev/kvm is there but runs nothing: %v", err)
		if err := os.WriteFile(useless, []byte("remove this file to try KVM again\n"), 0o644); err != nil {
			return fmt.Errorf("note that KVM does not work: %w", err)
		}
	}
	accel := o.accel
	if accel == "auto" {
		accel = "tcg"
	}
	m := machine{options: o, kernel: k, image: image, accel: accel}
	return m.run(ctx)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func mayUse(device string) bool {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// machine is one run of QEMU.
type machine struct {
	*options
	kernel kernel
	image  string
	accel  string
	// patience bounds the time to the start of init; zero is no bound of its own.
	patience time.Duration
}

// command is QEMU: a machine with nothing but processors, memory and two serial lines. The first is the kernel's
// console and goes to a file, the second has the events and is QEMU's standard output.
func (m *machine) command(ctx context.Context, console string) *exec.Cmd {
	cpu := "max"
	if m.accel == "kvm" {
		cpu = "host"
	}
	cmd := exec.CommandContext(ctx, qemu,
		"-accel", m.accel, "-machine", "q35", "-cpu", cpu, "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:"+console, "-serial", "stdio",
		"-kernel", m.kernel.image, "-initrd", m.image,
		// A panic ends the machine. Mitigations cost an emulated processor a lot, and there is nobody to keep out.
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on",
	)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run starts the machine and returns when it has ended.
func (m *machine) run(ctx context.Context) error {
	console := filepath.Join(m.cache, "console.log")
	ctx, end := context.WithCancel(ctx)
	defer end()
	cmd := m.command(ctx, console)
	var said bytes.Buffer
	cmd.Stderr = &said
	line, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", qemu, err)
	}
	v := &viewer{machine: m, started: start}
	if m.patience > 0 {
		v.hurry = time.AfterFunc(m.patience, end)
		defer v.hurry.Stop()
	}
	err = v.watch(line)
	if err == nil && v.done == nil {
		err = errors.New("the machine ended before its tests did")
	}
	if !v.booted && v.done == nil {
		err = errSilent
	}
	if err != nil {
		end()
	}
	if ended := cmd.Wait(); err == nil && ended != nil {
		err = fmt.Errorf("%s: %w", qemu, ended)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s%s", err, said.Bytes(), lastLines(console))
	}
	return v.result()
}

// lastLines is the end of the kernel's console, which tells why a machine ended early.
func lastLines(console string) []byte {
	const size = 4 << 10
	b, err := os.ReadFile(console)
	if err != nil {
		return nil
	}
	return b[max(0, len(b)-size):]
}

// viewer prints the events of a machine.
type viewer struct {
	machine *machine
	started time.Time
	// hurry ends a machine that does not start; may be nil.
	hurry  *time.Timer
	booted bool
	failed []string
	done   *plan.Event
}

// watch prints events until the machine closes its line.
func (v *viewer) watch(line io.Reader) error {
	lines := bufio.NewReader(line)
	for {
		b, err := lines.ReadBytes('\n')
		if e, ok := plan.Parse(b); ok {
			v.show(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the machine's serial line: %w", err)
		}
	}
}

func (v *viewer) show(e plan.Event) {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	switch e.Kind {
	case plan.Booted:
		v.booted = true
		if v.hurry != nil {
			v.hurry.Stop()
		}
		say("Linux %s booted in %s (%s, %d processors, %d MiB)", e.Text, seconds(time.Since(v.started)), v.machine.accel,
			v.machine.cpus, v.machine.memory)
	case plan.Started:
		say("%s", e.Package)
	case plan.Output:
		fmt.Printf("vm | %s\n", e.Text)
	case plan.Ended:
		if e.OK {
			say("%s: ok after %s", e.Package, seconds(e.Elapsed))
			return
		}
		v.failed = append(v.failed, e.Package)
		say("%s: FAILED after %s: %s", e.Package, seconds(e.Elapsed), e.Text)
	case plan.Done:
		v.done = &e
	}
}

// result is what became of the tests, printed and as an error.
func (v *viewer) result() error {
	switch {
	case v.done.Text != "":
		return fmt.Errorf("in the machine: %s", v.done.Text)
	case !v.done.OK || len(v.failed) > 0:
		say("failed on Linux %s: %v", v.machine.kernel.release, v.failed)
		return errTests
	}
	say("all passed on Linux %s after %.1f s", v.machine.kernel.release, time.Since(v.started).Seconds())
	return nil
}
