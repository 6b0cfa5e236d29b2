package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firstpacket/firstpacket/bench/vm/cpio"
	"github.com/firstpacket/firstpacket/bench/vm/kmod"
	"github.com/firstpacket/firstpacket/bench/vm/plan"
)

// tag is the build tag of tests that are only for the machine.
const tag = "vm"

// source is where the module's folders are in the guest, below its root.
const source = "src"

// kept are the modules that the guest has, with all that those need: the kernel loads them by itself when they are
// used. Folders end in a slash.
var kept = []string{
	"kernel/net/",
	"kernel/crypto/",
	"kernel/drivers/net/dummy.ko",
	"kernel/drivers/net/veth.ko",
}

// build makes everything that goes into the machine and returns the path of the archive.
func build(ctx context.Context, o *options, k kernel) (string, error) {
	bin := filepath.Join(o.cache, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for binaries: %w", err)
	}
	say("building the tests of %s", strings.Join(o.packages, ", "))
	init, agent := filepath.Join(bin, "init"), filepath.Join(bin, "firstpacket")
	if err := goTool(ctx, "build", "-o", init, "./bench/vm/init"); err != nil {
		return "", err
	}
	if err := goTool(ctx, "build", "-o", agent, "./cmd/firstpacket"); err != nil {
		return "", err
	}
	image := filepath.Join(o.cache, "initramfs")
	err := writeFile(image, func(w io.Writer) error {
		a := &archive{cpio.NewWriter(w)}
		err := errors.Join(
			a.file("init", init, 0o755),
			a.file(inGuest(plan.Agent), agent, 0o755),
			a.Add(cpio.Header{Name: "dev/console", Mode: cpio.CharDev | 0o600, Major: 5, Minor: 1}, nil),
			a.link("sbin/modprobe", "/init"),
			a.link("bin/false", "/init"),
			a.modules(k),
			a.tests(ctx, o, bin),
		)
		return errors.Join(err, a.Close())
	})
	return image, err
}

// goTool runs the go command for static binaries.
func goTool(ctx context.Context, verb string, args ...string) error {
	return command(ctx, "", "env", append([]string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "go", verb, "-ldflags=-s -w",
	}, args...)...)
}

// inGuest is an absolute path as the archive has it.
func inGuest(name string) string { return strings.TrimPrefix(name, "/") }

// writeFile makes or replaces the file; after an error there is none.
func writeFile(name string, write func(io.Writer) error) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(write(w), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(name)))
	}
	return nil
}

// archive adds kinds of content to a cpio archive.
type archive struct{ *cpio.Writer }

func (a *archive) file(name, from string, mode uint32) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return a.Add(cpio.Header{Name: name, Mode: cpio.Regular | mode, Size: info.Size()}, f)
}

func (a *archive) link(name, to string) error {
	return a.Add(cpio.Header{Name: name, Mode: cpio.Symlink | 0o777, Size: int64(len(to))}, strings.NewReader(to))
}

func (a *archive) json(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.Add(cpio.Header{Name: name, Mode: cpio.Regular | 0o644, Size: int64(len(b))}, bytes.NewReader(b))
}

// modules adds the kernel's modules and their index.
func (a *archive) modules(k kernel) error {
	index, err := kmod.NewIndex(k.modules, func(name string) bool {
		for _, p := range kept {
			if name == p || strings.HasSuffix(p, "/") && strings.HasPrefix(name, p) {
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	for _, name := range index.Files() {
		if err := a.file(path.Join(inGuest(plan.Modules), name), filepath.Join(k.modules, name), 0o644); err != nil {
			return err
		}
	}
	return a.json(inGuest(plan.Index), index)
}

// tests builds the test binaries and adds them, the files beside their source, and the plan to run them.
func (a *archive) tests(ctx context.Context, o *options, bin string) error {
	var p plan.Plan
	for _, pkg := range o.packages {
		binary := filepath.Join(bin, strings.ReplaceAll(pkg, "/", "-")+".test")
		if err := goTool(ctx, "test", "-tags="+tag, "-c", "-o", binary, "./"+pkg); err != nil {
			return err
		}
		name := path.Join("vm", "bin", filepath.Base(binary))
		if err := errors.Join(a.file(name, binary, 0o755), a.data(pkg)); err != nil {
			return err
		}
		step := plan.Step{
			Package: pkg, Binary: "/" + name, Dir: path.Join("/", source, pkg),
			Args: []string{fmt.Sprintf("-test.timeout=%s", o.timeout), "-test.run=" + o.run},
		}
		if o.verbose {
			step.Args = append(step.Args, "-test.v")
		}
		p.Steps = append(p.Steps, step)
	}
	return a.json(inGuest(plan.File), p)
}

// data adds the files of a package's folder that are not Go source: tests run in that folder, as under go test.
func (a *archive) data(pkg string) error {
	dir := cpio.Header{Name: path.Join(source, pkg), Mode: cpio.Directory | 0o755}
	if err := a.Add(dir, nil); err != nil {
		return err
	}
	return filepath.WalkDir(pkg, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || path.Ext(name) == ".go" {
			return err
		}
		return a.file(path.Join(source, filepath.ToSlash(name)), name, 0o644)
	})
}
