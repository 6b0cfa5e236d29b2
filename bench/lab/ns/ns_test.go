package ns

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func newNamespace(t *testing.T, name string) *Namespace {
	t.Helper()
	n, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestSocketsStayInTheirNamespace(t *testing.T) {
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	var server net.Listener
	if err := a.Do(func() (err error) {
		server, err = net.Listen("tcp", "127.0.0.1:8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	dial := func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:8080")
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := a.Do(dial); err != nil {
		t.Errorf("in the same namespace: %v", err)
	}
	if err := b.Do(dial); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("in another namespace: %v, want connection refused", err)
	}
	if err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("in the namespace of the process: %v, want connection refused", err)
	}
}

func TestSysctlIsOfTheNamespace(t *testing.T) {
	a, b := newNamespace(t, "a"), newNamespace(t, "b")
	if err := a.Sysctl(map[string]string{"ipv4/ip_forward": "1"}); err != nil {
		t.Fatal(err)
	}
	if err := b.Sysctl(map[string]string{"ipv4/ip_forward": "0"}); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[*Namespace]string{a: "1", b: "0"} {
		if got, err := n.ReadSysctl("ipv4/ip_forward"); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", n.Name(), got, err, want)
		}
	}
	err := a.Sysctl(map[string]string{"ipv4/no_such_key": "1"})
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestDoReturnsTheError(t *testing.T) {
	want := errors.New("from inside")
	if err := newNamespace(t, "a").Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestStarterKillsWhatItStarted(t *testing.T) {
	n := newNamespace(t, "a")
	starter := NewStarter()
	cmd := exec.Command("/bin/sh", "-c", "echo started; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(n, cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	child, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	if err := n.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if child != inside {
		t.Errorf("the process runs in %s, want %s", child, inside)
	}
	starter.Close()
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself, want it killed with the starter")
	}
}
