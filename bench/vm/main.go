// Command vm runs tests of this project on a kernel of Debian's, in a virtual machine that lives for a minute or two.
//
// The kernel under the desk need not have what kernels of distributions have: nftables' own queue expression, IPVS,
// SCTP sockets, flow tables. So this command unpacks one, puts it, its modules, test binaries and an init into an
// archive that serves as the machine's only file system, starts QEMU, and ends as the tests did. It changes nothing on
// the host but its cache folder, and installs QEMU with apt-get if it may. See docs/kernels.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// packages are the tests that run in the machine: those that meet the kernel, and those that are only for it.
var packages = []string{
	"proxy/queue",
	"proxy/ruleset",
	"proxy/conntrack",
	"bench/lab",
	"bench/vm/guest",
}

// options are the command line.
type options struct {
	cache    string
	kernel   string
	accel    string
	packages []string
	run      string
	verbose  bool
	cpus     int
	memory   int
	timeout  time.Duration
}

func main() {
	// The machine dies with the thread that started it, which is this one.
	runtime.LockOSThread()
	var o options
	chosen := flag.String("packages", strings.Join(packages, ","), "packages whose tests to run, with commas between")
	flag.StringVar(&o.cache, "cache", ".cache/vm", "folder for the kernel, the binaries and the machine's files")
	flag.StringVar(&o.kernel, "kernel", "linux-image-cloud-amd64",
		"Debian package of the kernel, or one that depends on the newest")
	flag.StringVar(&o.accel, "accel", "auto", "how QEMU runs the machine: kvm, tcg, or auto for kvm where it works")
	flag.StringVar(&o.run, "run", "", "run only the tests that match, as in go test -run")
	flag.BoolVar(&o.verbose, "v", false, "have the tests tell all, as in go test -v")
	flag.IntVar(&o.cpus, "cpus", 2, "processors of the machine")
	flag.IntVar(&o.memory, "memory", 1024, "memory of the machine in MiB")
	flag.DurationVar(&o.timeout, "timeout", 9*time.Minute, "time that the machine may take in all")
	flag.Parse()
	o.packages = strings.Split(*chosen, ",")

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, &o)
	stop()
	if err != nil {
		if !errors.Is(err, errTests) {
			fmt.Fprintln(os.Stderr, "vm:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the test machine is an x86-64 one; there is none for %s yet", runtime.GOARCH)
	}
	var err error
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return err
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	if err := needQEMU(ctx); err != nil {
		return err
	}
	k, err := findKernel(ctx, o.cache, o.kernel)
	if err != nil {
		return err
	}
	image, err := build(ctx, o, k)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	err = boot(ctx, o, k, image)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("the machine did not end within %s: %w", o.timeout, err)
	}
	return err
}

// say prints a line of this command's own.
func say(format string, args ...any) { fmt.Printf("vm: "+format+"\n", args...) }
