package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// qemu is the program, and the Debian package that has it.
const (
	qemu        = "qemu-system-x86_64"
	qemuPackage = "qemu-system-x86"
)

// needQEMU installs QEMU if it is not there and this process may.
func needQEMU(ctx context.Context) error {
	if _, err := exec.LookPath(qemu); err == nil {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("the test machine needs %s: apt-get install %s", qemu, qemuPackage)
	}
	say("installing %s", qemuPackage)
	if err := update(ctx); err != nil {
		return err
	}
	return command(ctx, "", "apt-get", "install", "-qq", "-y", "--no-install-recommends", qemuPackage)
}

// update refreshes apt's lists.
func update(ctx context.Context) error { return command(ctx, "", "apt-get", "update", "-qq") }

// command runs a tool quietly; what it said is part of its error.
func command(ctx context.Context, dir, name string, args ...string) error {
	_, err := ask(ctx, dir, name, args...)
	return err
}

// ask runs a tool and returns its standard output.
func ask(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, said.Bytes(), out.Bytes())
	}
	return out.String(), nil
}

// kernel is an unpacked one.
type kernel struct {
	// release is what uname -r says.
	release string
	// image is what boots, modules the folder of its modules.
	image, modules string
}

// findKernel takes the kernel from the cache, or has it downloaded and unpacked there. A package without a kernel of
// its own stands for the newest that it depends on.
func findKernel(ctx context.Context, cache, name string) (kernel, error) {
	root := filepath.Join(cache, name)
	if k, err := openKernel(root); err == nil {
		return k, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return kernel{}, fmt.Errorf("the kernel is the Debian package %s, and there is no apt-get here: unpack it into "+
			"%s with dpkg-deb -x", name, root)
	}
	newest, err := resolve(ctx, name)
	if err != nil {
		return kernel{}, err
	}
	say("downloading %s", newest)
	fresh := root + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.RemoveAll(root), os.MkdirAll(fresh, 0o755)); err != nil {
		return kernel{}, fmt.Errorf("make a folder for the kernel: %w", err)
	}
	if err := command(ctx, fresh, "apt-get", "download", "-qq", newest); err != nil {
		return kernel{}, err
	}
	debs, err := filepath.Glob(filepath.Join(fresh, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("apt-get download %s left %d packages: %w", newest, len(debs), err)
	}
	if err := command(ctx, fresh, "dpkg-deb", "-x", debs[0], fresh); err != nil {
		return kernel{}, err
	}
	// Debian compresses modules from Linux 6.9 on; the index looks into them.
	if err := command(ctx, fresh, "find", ".", "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"); err != nil {
		return kernel{}, err
	}
	// Only a whole one gets the name that is looked for.
	if err := errors.Join(os.Remove(debs[0]), os.Rename(fresh, root)); err != nil {
		return kernel{}, fmt.Errorf("keep the kernel: %w", err)
	}
	return openKernel(root)
}

// resolve follows a package that only depends on the current kernel, refreshing apt's lists if they do not have it.
func resolve(ctx context.Context, name string) (string, error) {
	out, err := ask(ctx, "", "apt-cache", "depends", "--no-recommends", "--no-suggests", name)
	if err != nil && os.Geteuid() == 0 {
		if err := update(ctx); err != nil {
			return "", err
		}
		out, err = ask(ctx, "", "apt-cache", "depends", "--no-recommends", "--no-suggests", name)
	}
	if err != nil {
		return "", fmt.Errorf("apt-get knows no package %s (it is one of Debian's; as root its lists are refreshed): %w",
			name, err)
	}
	for line := range strings.Lines(out) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + version, nil
		}
	}
	return name, nil
}

// openKernel looks at an unpacked package.
func openKernel(root string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("there is no kernel in %s", root)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} { // the latter from Debian 13 on
		modules := filepath.Join(root, lib, release)
		if _, err := os.Stat(modules); err == nil {
			return kernel{release, images[0], modules}, nil
		}
	}
	return kernel{}, fmt.Errorf("there are no modules of kernel %s in %s", release, root)
}
