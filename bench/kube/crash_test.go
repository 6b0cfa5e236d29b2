package kube

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crasher is set in the environment of the process that TestNothingSurvivesACrash starts and kills.
const crasher = "FIRSTPACKET_KUBE_TEST_CRASHER"

// crash starts a cluster, tells its processes' ids, and waits to be killed.
func crash() int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Start(ctx, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(c.Etcd.run.pid, c.APIServer.run.pid)
	_, _ = os.Stdin.Read(make([]byte, 1)) // ends by itself with its parent
	return 1
}

func TestNothingSurvivesACrash(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // what the killed process leaves on disk
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crasher+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("the process that is to crash: %v", err)
	}
	var servers [2]unix.PollFd
	for i, pid := range pids(t, said) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		servers[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its status is the kill
	for i := range servers {
		if n, err := unix.Poll(servers[i:i+1], 30_000); n != 1 {
			t.Errorf("server %d of %q still runs (%v)", i, said, err)
		}
	}
}

func pids(t *testing.T, said string) (p [2]int) {
	t.Helper()
	if _, err := fmt.Sscan(said, &p[0], &p[1]); err != nil {
		t.Fatalf("%q: %v", said, err)
	}
	return p
}
