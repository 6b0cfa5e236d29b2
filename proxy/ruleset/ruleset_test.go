package ruleset

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
	"github.com/firstpacket/firstpacket/proxy/mark"
)

func TestConfigErrors(t *testing.T) {
	for what, cfg := range map[string]Config{
		"no mask":    {},
		"queues":     {Mask: layoutOfMarks, QueueFirst: 65535, QueueCount: 2},
		"deny":       {Mask: layoutOfMarks, DenyWith: 9},
		"time":       {Mask: layoutOfMarks, DeniedTimeout: time.Microsecond},
		"below zero": {Mask: layoutOfMarks, DeniedTimeout: -time.Second},
	} {
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := Open(Config{}); !errors.Is(err, mark.ErrMask) {
		t.Errorf("no mask: %v", err)
	}
}

func TestProbe(t *testing.T) {
	ns := nstest.New(t)
	f, err := Probe(int(ns.Handle()))
	if err != nil {
		t.Fatal(err)
	}
	if s := f.String(); s != "queue=native limit=yes" && s != "queue=xt limit=yes" {
		t.Errorf("features %q", s)
	}
	c, err := connect(int(ns.Handle()))
	if err != nil {
		t.Fatal(err)
	}
	if tables, err := c.ListTables(); err != nil || len(tables) != 0 {
		t.Errorf("tables left: %v, %v", tables, err)
	}
}

func TestProbeWithoutPermission(t *testing.T) {
	ns := nstest.New(t)
	result := make(chan error)
	go func() { // its thread loses its capabilities and ends with it
		runtime.LockOSThread()
		result <- func() error {
			if err := netns.Set(ns.Handle()); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			_, err := Probe(0)
			return err
		}()
	}()
	if err := <-result; !errors.Is(err, ErrPermission) || !errors.Is(err, unix.EPERM) {
		t.Errorf("Probe: %v, want ErrPermission", err)
	}
}
