package nstest

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Elevate()
	goleak.VerifyTestMain(m)
}

func current(t *testing.T) netns.NsHandle {
	t.Helper()
	h, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func TestDoRunsInsideAndReturns(t *testing.T) {
	before := current(t)
	a, b := New(t), New(t)
	if a.Handle().Equal(b.Handle()) || a.Handle().Equal(before) {
		t.Fatal("namespaces are not distinct")
	}
	a.Do(func() {
		if h := current(t); !h.Equal(a.Handle()) {
			t.Errorf("Do ran in %v, want %v", h, a.Handle())
		}
		b.Do(func() {
			if h := current(t); !h.Equal(b.Handle()) {
				t.Errorf("nested Do ran in %v, want %v", h, b.Handle())
			}
		})
		if h := current(t); !h.Equal(a.Handle()) {
			t.Errorf("after a nested Do: %v, want %v", h, a.Handle())
		}
	})
	if h := current(t); !h.Equal(before) {
		t.Errorf("after Do: %v, want %v", h, before)
	}
}

func TestLoopbackIsUpAndSocketsStay(t *testing.T) {
	ns := New(t)
	var conn net.PacketConn
	ns.Do(func() {
		var err error
		if conn, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.ReadFrom(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestRunReturnsTheError(t *testing.T) {
	want := errors.New("mine")
	if err := New(t).Run(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Run = %v, want %v", err, want)
	}
}

func TestThreadComesBackAfterPanic(t *testing.T) {
	before := current(t)
	ns := New(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
			if h := current(t); !h.Equal(before) {
				t.Errorf("after a panic in Do: %v, want %v", h, before)
			}
		}()
		ns.Do(func() { panic("out") })
	}()
	<-done
}
