package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/bench/vm/plan"
)

// touch makes empty files below root.
func touch(t *testing.T, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKernelInTheCache(t *testing.T) {
	for name, lib := range map[string]string{"until Debian 12": "lib", "since": "usr/lib"} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			touch(t, cache, "image/boot/vmlinuz-6.1.0", "image/"+lib+"/modules/6.1.0/modules.order")
			k, err := findKernel(t.Context(), cache, "image")
			if err != nil {
				t.Fatal(err)
			}
			if k.release != "6.1.0" || filepath.Base(k.image) != "vmlinuz-6.1.0" || filepath.Base(k.modules) != "6.1.0" {
				t.Errorf("got %+v", k)
			}
		})
	}
}

func TestPackagesAreThere(t *testing.T) {
	for _, p := range packages {
		if found, err := filepath.Glob(filepath.Join("../..", p, "*_test.go")); err != nil || len(found) == 0 {
			t.Errorf("%s has no tests: %v", p, err)
		}
	}
	if !slices.Contains(packages, "bench/vm/guest") {
		t.Error("the tests that are only for the machine are not run in it")
	}
}

// transcript is what a machine sends.
func transcript(t *testing.T, events ...plan.Event) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("SeaBIOS or the kernel may say something, too\n")
	for _, e := range events {
		if err := plan.Send(&b, e); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestResult(t *testing.T) {
	booted := plan.Event{Kind: plan.Booted, Text: "6.1.0"}
	ended := func(ok bool) plan.Event { return plan.Event{Kind: plan.Ended, Package: "a", OK: ok} }
	done := func(ok bool, text string) plan.Event { return plan.Event{Kind: plan.Done, OK: ok, Text: text} }
	for name, c := range map[string]struct {
		events []plan.Event
		check  func(error) bool
	}{
		"passed": {[]plan.Event{booted, ended(true), done(true, "")}, func(err error) bool { return err == nil }},
		"failed": {[]plan.Event{booted, ended(false), done(false, "")}, func(err error) bool {
			return errors.Is(err, errTests)
		}},
		"broken": {[]plan.Event{booted, done(false, "no /proc")}, func(err error) bool {
			return err != nil && !errors.Is(err, errTests) && strings.Contains(err.Error(), "no /proc")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			v := &viewer{machine: &machine{options: &options{}}}
			if err := v.watch(strings.NewReader(transcript(t, c.events...))); err != nil {
				t.Fatal(err)
			}
			if !v.booted || v.done == nil {
				t.Fatal("events were missed")
			}
			if err := v.result(); !c.check(err) {
				t.Errorf("result: %v", err)
			}
		})
	}
}
